"""One turn of an orchestration, and its outbox: what the turn decided to say, in order.

Nothing is said while the turn's code runs. The host sends the outbox after the code and before it
reports the turn's completion, so that nothing is said for a turn that never ran, and a turn that is
repeated after a crash says the same things under the same ids. Of the one exception see `beginnings`.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeAlias

from towline.contracts.events import Event

if TYPE_CHECKING:
    from towline.worker.run import Run


@dataclass(frozen=True, slots=True)
class Publish:
    """An event for Kafka."""

    event: Event


@dataclass(frozen=True, slots=True)
class RaiseOn:
    """An external event for another instance."""

    instance_id: str
    name: str
    data: dict[str, Any]


Said: TypeAlias = Publish | RaiseOn


@dataclass(frozen=True, slots=True)
class Waited:
    """An ask that has come to its end in this turn, for the record."""

    approval_id: str
    outcome: str
    requested_at: datetime
    resolved_at: datetime
    traceparent: str | None
    """The orchestration's own span."""
    decided_in: tuple[str, ...] = ()
    """Traces (traceparent) of the decisions that it was decided by."""
    approver: str | None = None


@dataclass(slots=True)
class Turn:
    """What one turn says, and the run that it belongs to once its code has begun."""

    instance_id: str
    position: int
    """How many events the instance's history held before this turn: the same however often it repeats."""
    outbox: list[Said] = field(default_factory=list["Said"])
    repeats_beginning: bool = False
    """It says that the run has started although an earlier turn did: that one may not have been heard."""
    progress_count: int = 0
    run: Run | None = None
    waited: list[Waited] = field(default_factory=list["Waited"])
    retries: int = 0
    """Agent calls that this turn decided to try again."""
    cancelled_calls: frozenset[str] = frozenset()
    """Numbers of the agent calls that the run had made when this turn brought it its cancel."""


_current: ContextVar[Turn | None] = ContextVar("towline_turn", default=None)


def current_turn() -> Turn | None:
    """The turn whose code is running in this context."""
    return _current.get()


@contextmanager
def active(turn: Turn) -> Generator[Turn]:
    """Make `turn` the current one while the block runs."""
    token = _current.set(turn)
    try:
        yield turn
    finally:
        _current.reset(token)
