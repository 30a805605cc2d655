"""The topics: names, keys and settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from towline.contracts.events import TopicName

DEFAULT_PREFIX: Final = "towline."
_DAY_MS: Final = 24 * 60 * 60 * 1000


@dataclass(frozen=True, slots=True)
class TopicSpec:
    """How one topic is created."""

    name: TopicName
    purpose: str
    partitions: int = 12
    """Parallelism of the consumers of this topic; growing it later moves keys between partitions."""
    settings: Mapping[str, str] = field(default_factory=dict[str, str])
    """Kafka topic settings other than the defaults."""


TOPICS: Final[tuple[TopicSpec, ...]] = (
    TopicSpec("runs", "run requests and control commands, in", settings={"retention.ms": str(7 * _DAY_MS)}),
    TopicSpec(
        "approvals", "decisions and other external events, in", settings={"retention.ms": str(7 * _DAY_MS)}
    ),
    TopicSpec(
        "events", "lifecycle, approval requests and answers, out", settings={"retention.ms": str(7 * _DAY_MS)}
    ),
    TopicSpec("results", "one outcome per run, out", settings={"retention.ms": str(30 * _DAY_MS)}),
    TopicSpec("catalog", "what apps can run", partitions=1, settings={"cleanup.policy": "compact"}),
    TopicSpec(
        "dead-letters",
        "what could not be trusted, with the reason",
        partitions=1,
        # Room for the largest record that the other topics take, with the headers that say what is wrong.
        settings={"retention.ms": str(30 * _DAY_MS), "max.message.bytes": str(2 * 1024 * 1024)},
    ),
)


@dataclass(frozen=True, slots=True)
class Topics:
    """The topics' full names under one prefix."""

    prefix: str = DEFAULT_PREFIX

    def name(self, topic: TopicName) -> str:
        """The full name of `topic`."""
        return f"{self.prefix}{topic}"

    @property
    def runs(self) -> str:
        """Commands: run requests and control."""
        return self.name("runs")

    @property
    def approvals(self) -> str:
        """Decisions and other external events."""
        return self.name("approvals")

    @property
    def events(self) -> str:
        """Lifecycle events."""
        return self.name("events")

    @property
    def results(self) -> str:
        """Outcomes."""
        return self.name("results")

    @property
    def catalog(self) -> str:
        """Registered apps (compacted)."""
        return self.name("catalog")

    @property
    def dead_letters(self) -> str:
        """Dead letters."""
        return self.name("dead-letters")
