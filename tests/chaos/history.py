"""What is left when the faults are over: what was sent, what Kafka holds, what the activities did."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

MARK = "chaos_mark"
"""Header of every record that the load sends: names it also where its content is no event."""

ORIGIN_TOPIC = "towline_dead_letter_topic"

ControlKind: TypeAlias = Literal["cancel", "suspend", "resume"]
Kind: TypeAlias = Literal["request", "decision", "garbage"] | ControlKind


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """One record that the load has sent; a record without acknowledgement is sent again as it is."""

    mark: str
    topic: str
    kind: Kind
    event_id: str = ""
    run_id: str = ""
    run_type: str = ""
    input: Any = None
    ends: tuple[str, ...] = ()
    """Of a request: the outcomes that may follow."""
    acknowledged: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One record of Kafka, its topic without prefix."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int = 0
    value: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def id(self) -> str:
        return self.headers.get("ce_id", "")

    @property
    def type(self) -> str:
        """Without ``towline.`` and version: ``run.completed``."""
        return self.headers.get("ce_type", "").removeprefix("towline.").removesuffix(".v1")

    @property
    def data(self) -> dict[str, Any]:
        return json.loads(self.value or b"{}")

    @property
    def origin(self) -> tuple[str, int, int]:
        """Of a dead letter: where it was."""
        place = (self.headers.get(f"towline_dead_letter_{part}", "-1") for part in ("partition", "offset"))
        partition, offset = map(int, place)
        return self.headers.get(ORIGIN_TOPIC, ""), partition, offset


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """One execution of an activity; `token` is what it gave back, another one in each execution."""

    run_id: str
    step: str
    token: str


@dataclass(frozen=True, slots=True)
class History:
    """All of it. `taken`, `published` and `dead` are in the order of their partitions."""

    sent: Sequence[Sent]
    taken: Sequence[Record] = ()
    """What is on runs and approvals."""
    published: Sequence[Record] = ()
    """What is on events and results."""
    dead: Sequence[Record] = ()
    effects: Sequence[Effect] = ()
