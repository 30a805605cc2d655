"""Towline as `towline dev` starts it, with a quiet log."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Final

from benchmarks.end_to_end.systems.base import PARTITIONS, Kind, Message, Said, System
from redis import Redis

from towline.contracts.cloudevents import encode
from towline.contracts.events import ApprovalDecided, Event, EventData, RunRequested
from towline.contracts.topics import Topics
from towline.dev import ports
from towline.dev.stack import ROLES, Stack, StackPlan

_PREFIX: Final = "TOWLINE_KAFKA_TOPIC_PREFIX"


class Towline(System):
    """All roles, one process each."""

    name = "towline"
    about = (
        "`towline dev`'s stack: bridge, worker, relay, scheduler, one process each, log level WARNING; "
        "an upstream-style module. Streams every answer besides, which none of the others does."
    )
    durable = "every step (SQLite, fsynced by group commit), commands and outcomes (Kafka, acks=all)"
    settings: ClassVar[Mapping[str, str]] = {}
    """More `TOWLINE_*` variables."""
    given: ClassVar[Mapping[str, str]] = {}
    """Addresses of parts that are not started."""
    roles: ClassVar[Sequence[str]] = ROLES
    workers: ClassVar[int] = 1

    def __init__(self, bootstrap: str, *, tag: str = "") -> None:
        super().__init__(bootstrap, tag=tag)
        self._folder = tempfile.TemporaryDirectory(prefix="towline-bench-")
        settings = {"TOWLINE_LOG_LEVEL": "WARNING", **self.settings}
        if tag:
            settings[_PREFIX] = tag + settings.get(_PREFIX, "")
        wanted: dict[str, int] = {}
        if self.workers > 1:
            settings["TOWLINE_WORKER_PROCESSES"] = str(self.workers)
            wanted["worker"] = _followed(self.workers)
        self._stack = Stack(
            StackPlan(
                data=Path(self._folder.name),
                app="benchmarks.end_to_end.towline_app:setup_worker",
                given={"TOWLINE_KAFKA_BOOTSTRAP": bootstrap, **self.given},
                roles=self.roles,
                settings=settings,
                partitions=PARTITIONS,
                ports=wanted,
            )
        )

    @cached_property
    def _topics(self) -> Topics:
        # Made once: the stack reads its settings each time it is asked, which takes longer than a record.
        return self._stack.kafka.topics

    @property
    def listens(self) -> Sequence[str]:
        return (self._topics.results,)

    @property
    def asks_on(self) -> Sequence[str]:
        return (self._topics.events,)

    @property
    def processes(self) -> Mapping[str, int]:
        return {part.name: part.pid for part in self._stack.parts}

    @property
    def own(self) -> Sequence[str]:
        return ("scheduler", *self.roles)

    def request(self, run_id: str, kind: Kind, message: str) -> Message:
        return self._message(RunRequested(run_id=run_id, run_type=kind, input=message), run_id)

    def decide(self, run_id: str, approval: str) -> Message:
        data = ApprovalDecided(run_id=run_id, approval_id=approval, approved=True)
        return self._message(data, f"{run_id}-decision")

    def read(self, record: Any) -> Said | None:
        kind = dict(record.headers)["ce_type"]
        if kind == b"towline.approval.requested.v1":
            data = json.loads(record.value)
            return Said(data["run_id"], asks=data["approval_id"])
        if record.topic == self._topics.results:
            data = json.loads(record.value)
            return Said(data["run_id"], output=data.get("output", data.get("error")))
        return None

    def start(self) -> None:
        self._stack.start()

    def stop(self) -> None:
        self._stack.stop()
        self._folder.cleanup()

    def stored_kb(self) -> Mapping[str, float]:
        """The scheduler's files, Valkey's memory."""
        disk = {"disk": self._disk_kb()}
        if "TOWLINE_REDIS_URL" in self.given:
            return disk
        client_class: Any = Redis  # its methods have no types
        with client_class.from_url(self._stack.redis_url) as client:
            memory: dict[str, int] = client.info("memory")
        return {**disk, "redis": memory["used_memory"] / 1024}

    def _disk_kb(self) -> float:
        files = (Path(self._folder.name) / "scheduler" / "data").rglob("*")
        return sum(file.stat().st_size for file in files if file.is_file()) / 1024

    def _message(self, data: EventData, event_id: str) -> Message:
        record = encode(Event(id=event_id, source="bench", data=data))
        assert record.key is not None
        assert record.value is not None
        return Message(self._topics.name(data.topic), record.key, record.value, record.headers)


class TowlineCore(Towline):
    """What the others do and no more: no streams, no index of runs."""

    name = "towline-core"
    about = (
        "As towline, but bridge, worker and scheduler only (`TOWLINE_STREAM_ENABLED=false`): no Redis and no "
        "relay, so no streams of tokens and no index of runs, as the others have none."
    )
    settings: ClassVar[Mapping[str, str]] = {
        "TOWLINE_STREAM_ENABLED": "false",
        # With the topics of `Towline`, each would do a part of the other's runs.
        _PREFIX: "towline-core.",
    }
    given: ClassVar[Mapping[str, str]] = {"TOWLINE_REDIS_URL": "redis://127.0.0.1:1"}
    roles: ClassVar[Sequence[str]] = ("bridge", "worker")


class TowlineX2(Towline):
    """Two worker processes."""

    name = "towline-x2"
    about = "As towline, with two worker processes under one (`TOWLINE_WORKER_PROCESSES=2`)."
    settings: ClassVar[Mapping[str, str]] = {_PREFIX: "towline-x2."}
    workers = 2


class TowlineCoreX2(TowlineCore):
    """The same without streams and index."""

    name = "towline-core-x2"
    about = "As towline-core, with two worker processes under one (`TOWLINE_WORKER_PROCESSES=2`)."
    settings: ClassVar[Mapping[str, str]] = {
        **TowlineCore.settings,
        _PREFIX: "towline-core-x2.",
    }
    workers = 2


def _followed(count: int) -> int:
    """A free port, the `count` next leased: the worker processes take them, and no stack knows of it."""
    while True:
        first = ports.lease()
        following = range(first + 1, first + 1 + count)
        leased = [ports.lease(port) for port in following]
        ports.release(first)  # for the stack, which leases what it uses
        if leased == list(following):
            return first
