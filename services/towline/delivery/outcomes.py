"""What a handler answers: a value, not an exception.

| answer | the record | its lane |
|---|---|---|
| `Done` | is finished | goes on |
| `Retry` | is handled again after a while | waits, and costs no concurrency meanwhile |
| `DeadLetter` | is written to the dead letters, then finished | goes on |
| `Deferred` | stays uncommitted until the awaitable ends | goes on at once |
"""

from __future__ import annotations

from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias


@dataclass(frozen=True, slots=True)
class Done:
    """Handled: never to be delivered again."""


DONE: Final = Done()
"""The one `Done` there need be."""


@dataclass(frozen=True, slots=True)
class Retry:
    """A passing trouble: handle the record again, nothing behind it in its lane before."""

    reason: str
    """Stable word for logs and metrics."""
    after_s: float | None = None
    """Seconds to wait; None: the consumer's backoff with jitter."""


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A lasting fault of the record itself: put it aside and go on."""

    reason: str
    """Stable word for programs and metrics, for example ``invalid_json``."""
    error: str
    """For a person: what is wrong and, where known, what to do about it."""


@dataclass(frozen=True, slots=True)
class Deferred:
    """Handled as far as the lane is concerned, but not to be forgotten before `ending` is through.

    `ending` runs as a task of the consumer's. It is cancelled when the partition is revoked or the
    consumer stops: the record is then delivered again, so everything it does must bear repetition.
    If it raises, the record becomes a dead letter (`handler_failed`).
    """

    ending: Coroutine[Any, Any, None] = field(compare=False)


Outcome: TypeAlias = Done | Retry | DeadLetter | Deferred
