"""The one interface that the workloads drive."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, ClassVar, Literal, Self

Kind = Literal["answer", "approved_answer"]
PARTITIONS = 3
"""Of each topic, for all systems: what `towline dev` has on one machine."""


class StartError(Exception):
    """A system could not be started; the message says which process and what it said last."""


@dataclass(frozen=True, slots=True)
class Message:
    """One Kafka record to publish."""

    topic: str
    key: bytes
    value: bytes
    headers: Sequence[tuple[str, bytes]] = field(default=())


@dataclass(frozen=True, slots=True)
class Said:
    """What one record of the system says about a run."""

    run_id: str
    asks: str | None = None
    """The run waits for a decision on this approval."""
    output: Any = None
    """The run has ended with this."""


class System(ABC):
    """One system under measurement on a Kafka that all share. A context manager."""

    name: ClassVar[str]
    about: ClassVar[str]
    """How it was built."""
    durable: ClassVar[str]
    """What in it survives a crash."""
    refuses: ClassVar[Mapping[str, str]] = {}
    """Workloads that it cannot do, with the reason."""

    def __init__(self, bootstrap: str, *, tag: str = "") -> None:
        """Make it, without starting it.

        Args:
            bootstrap: Kafka's address.
            tag: The names of its topics begin with it: tells it from one that was there before.
        """
        self.bootstrap = bootstrap
        self.tag = tag

    @classmethod
    def missing(cls) -> str | None:
        """What it would need on this machine and is not there; None: it can run."""
        return None

    @property
    @abstractmethod
    def listens(self) -> Sequence[str]:
        """Topics on which it says what came of runs."""

    @property
    def asks_on(self) -> Sequence[str]:
        """Topics besides those on which it asks for decisions: read while there is something to decide."""
        return ()

    @property
    @abstractmethod
    def processes(self) -> Mapping[str, int]:
        """Ids of all its processes by name; a process's children count with it."""

    @property
    def own(self) -> Sequence[str]:
        """Names of the processes that count as the system's cost: all but Kafka and Redis."""
        return tuple(self.processes)

    def stored_kb(self) -> Mapping[str, float]:
        """Kilobytes that it keeps of its runs now, by place; empty: not known."""
        return {}

    @abstractmethod
    def request(self, run_id: str, kind: Kind, message: str) -> Message:
        """Ask for a run."""

    @abstractmethod
    def decide(self, run_id: str, approval: str) -> Message:
        """Approve."""

    @abstractmethod
    def read(self, record: Any) -> Said | None:
        """What a record says, as far as the benchmark cares."""

    @abstractmethod
    def start(self) -> None:
        """Start all processes and wait until they serve."""

    @abstractmethod
    def stop(self) -> None:
        """Stop all processes and delete their data."""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
