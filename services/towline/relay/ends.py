"""When an outcome may end its run's stream, and how far each partition is done. Pure.

An outcome and the run's earlier events travel in different topics, and its tokens not through Kafka at all.
So it is held until (1) the `events` partition of the run was applied up to where it ended when the outcome
was read, (2) the tokens written last had time to arrive, (3) no agent turn is open, or has been for too long.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from towline.relay.projection import Change
from towline.relay.store import Mode, Step

_BARRIER_STALLED_S: Final = 30.0
"""An `events` partition that does not move for so long is not waited for."""


@dataclass(slots=True)
class Held:
    """An outcome that waits."""

    partition: str
    offset: int
    change: Change
    barrier: tuple[str, int] | None
    """Partition of `events`, and the offset that must have been applied up to."""
    due_at: float
    barrier_seen: int = -1
    barrier_moved_at: float = 0.0
    force_at: float | None = None
    taken_ns: int = 0
    """When it was read, Unix time in ns."""


@dataclass(slots=True)
class Progress:
    """What is done of one partition: steps leave in order of their offsets."""

    waiting: deque[int] = field(default_factory=deque[int])
    done: dict[int, Step] = field(default_factory=dict[int, Step])

    def admit(self, offset: int) -> None:
        """A record was read."""
        self.waiting.append(offset)

    def finish(self, step: Step) -> None:
        """A record is done with."""
        self.done[step.offset] = step

    def drain(self) -> Iterator[Step]:
        """Steps that nothing unfinished comes before."""
        while self.waiting and self.waiting[0] in self.done:
            yield self.done.pop(self.waiting.popleft())


class HeldOutcomes:
    """The outcomes that wait.

    Args:
        turns_close_s: How long open agent turns are waited for, once nothing else is.
    """

    def __init__(self, *, turns_close_s: float) -> None:
        self._turns_close_s = turns_close_s
        self._held: dict[tuple[str, int], Held] = {}
        self.size_chars = 0
        """Length of what is held, as JSON."""

    def __len__(self) -> int:
        return len(self._held)

    def add(self, held: Held, *, now: float) -> None:
        """Hold an outcome."""
        held.barrier_moved_at = now
        self.release(held)
        self._held[held.partition, held.offset] = held
        self.size_chars += _size_chars(held)

    def due_in(self, *, now: float) -> float | None:
        """Seconds until the first outcome has waited for its tokens, 0 if one has; None: nothing is held."""
        due_at = min((held.due_at for held in self._held.values()), default=None)
        return None if due_at is None else max(0.0, due_at - now)

    def barriers(self) -> set[str]:
        """Partitions of `events` that something waits for."""
        return {held.barrier[0] for held in self._held.values() if held.barrier is not None}

    def ready(self, positions: Mapping[str, int], *, now: float) -> list[tuple[Held, Mode]]:
        """Outcomes to try now, and whether without regard to open turns.

        Args:
            positions: Next offset to apply, of the partitions in `barriers`.
            now: Seconds on a clock that only goes forward.
        """
        ready: list[tuple[Held, Mode]] = []
        for held in self._held.values():
            if not _passed(held, positions, now) or now < held.due_at:
                continue
            if held.force_at is None:
                held.force_at = now + self._turns_close_s
            ready.append((held, "force" if now >= held.force_at else "end"))
        return ready

    def release(self, held: Held) -> None:
        """It was applied."""
        if (before := self._held.pop((held.partition, held.offset), None)) is not None:
            self.size_chars -= _size_chars(before)


def _size_chars(held: Held) -> int:
    return len(held.change.fields.get("outcome", ""))


def _passed(held: Held, positions: Mapping[str, int], now: float) -> bool:
    if held.barrier is None:
        return True
    partition, offset = held.barrier
    position = positions.get(partition, -1)
    if position != held.barrier_seen:
        held.barrier_seen, held.barrier_moved_at = position, now
    return position >= offset or now - held.barrier_moved_at > _BARRIER_STALLED_S
