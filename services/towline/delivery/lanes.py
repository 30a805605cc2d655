"""Lanes: which record may be handled now, and up to where a partition is finished. No I/O, no clock.

A partition's records are spread over lanes by key. One lane handles its records one after another, in
the order of their offsets; different lanes never wait for one another. What is committed is the
highest offset below which everything is finished.

| a lane is | because | leaves by |
|---|---|---|
| idle | it holds nothing | `admit` |
| ready | its first record may start | `take` |
| running | its first record is being handled | `finish`, `defer`, `retry`, `release` |
| waiting | its first record is tried again later | `wake` |
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import Generic, TypeVar

PartitionT = TypeVar("PartitionT", bound=Hashable)
ItemT = TypeVar("ItemT")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much a consumer takes on. A partition that reaches one of them pauses until half of it is free."""

    max_running_count: int = 256
    """Records being handled at the same time, over all partitions."""
    max_queued_count: int = 1_000
    """Records of one partition that are being handled or could be."""
    max_uncommitted_count: int = 50_000
    """Records of one partition above the committed offset: what a crash would deliver again."""
    max_held_bytes: int = 128 * 1024 * 1024
    """Size of all records that are not finished, over all partitions."""


class OffsetTracker:
    """The unfinished offsets of one partition, and the offset to commit."""

    __slots__ = ("_finished", "_open", "_position", "last_offset")

    def __init__(self) -> None:
        self.last_offset = -1
        """The highest that was ever admitted."""
        self._open: deque[int] = deque()
        self._finished: set[int] = set()
        self._position: int | None = None

    def admit(self, offset: int) -> None:
        """Take on `offset`; offsets grow, with gaps where the log was compacted."""
        if self._open and offset <= self._open[-1]:
            msg = f"offset {offset} after {self._open[-1]}"
            raise ValueError(msg)
        self._open.append(offset)
        self.last_offset = offset

    def finish(self, offset: int) -> None:
        """Mark `offset` as finished and move the position as far as it goes."""
        self._finished.add(offset)
        while self._open and self._open[0] in self._finished:
            done = self._open.popleft()
            self._finished.discard(done)
            self._position = done + 1

    @property
    def next_offset(self) -> int | None:
        """All below it is finished: what to commit. None before the first record."""
        return self._open[0] if self._open else self._position

    @property
    def uncommitted_count(self) -> int:
        """Offsets from the position on, finished or not."""
        return len(self._open)


class LaneState(Enum):
    """See the table in the module's docstring."""

    IDLE = "idle"
    READY = "ready"
    RUNNING = "running"
    WAITING = "waiting"


@dataclass(slots=True, eq=False)
class _Lane(Generic[PartitionT, ItemT]):
    key: Hashable
    partition: _Partition[PartitionT, ItemT]
    queue: deque[Work[PartitionT, ItemT]] = field(default_factory=deque["Work[PartitionT, ItemT]"])
    state: LaneState = LaneState.IDLE


@dataclass(slots=True, eq=False)
class _Partition(Generic[PartitionT, ItemT]):
    id: PartitionT
    offsets: OffsetTracker = field(default_factory=OffsetTracker)
    lanes: dict[Hashable, _Lane[PartitionT, ItemT]] = field(
        default_factory=dict[Hashable, "_Lane[PartitionT, ItemT]"]
    )
    queued: int = 0
    running: int = 0
    parked: int = 0
    held_bytes: int = 0
    paused: bool = False
    open: bool = True
    started_offset: int = -1
    """The highest that was ever started."""

    def may_start(self, offset: int) -> bool:
        """Of a closed partition only what lies before a record that was started: see `Lanes.close`."""
        return self.open or offset < self.started_offset


@dataclass(slots=True, eq=False)
class Work(Generic[PartitionT, ItemT]):
    """One record on its way through its lane."""

    partition: PartitionT
    offset: int
    item: ItemT
    size_bytes: int
    lane: _Lane[PartitionT, ItemT] = field(repr=False)
    attempt: int = 1
    """1 at first."""
    failures: int = 0
    """How often the handler raised."""


class Lanes(Generic[PartitionT, ItemT]):
    """All lanes of one consumer. One owner, not for use from several threads."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self._partitions: dict[PartitionT, _Partition[PartitionT, ItemT]] = {}
        self._ready: deque[_Lane[PartitionT, ItemT]] = deque()
        self._waiting: list[tuple[float, int, _Lane[PartitionT, ItemT]]] = []
        self._sequence = 0
        self._running = 0
        self._held_bytes = 0

    # -- partitions ------------------------------------------------------------------------------------

    def assign(self, partitions: Iterable[PartitionT]) -> None:
        """Start afresh with `partitions`; those that are here already stay as they are."""
        for partition in partitions:
            self._partitions.setdefault(partition, _Partition(partition))

    def close(self, partitions: Iterable[PartitionT]) -> None:
        """Start nothing new of `partitions`; what runs may still finish and move the position.

        What lies before a record that was started still starts: left out, it would hold the offset to commit,
        and all that was finished behind it would be delivered again.
        """
        for partition in self._known(partitions):
            partition.open = False

    def seal(self, partitions: Iterable[PartitionT]) -> None:
        """Start nothing at all of `partitions` any more; what runs may still finish."""
        for partition in self._known(partitions):
            partition.open = False
            partition.started_offset = -1

    def closing_count(self, partitions: Iterable[PartitionT]) -> int:
        """Records of closed `partitions` that run or will still be started."""
        return sum(
            lane.state is LaneState.RUNNING
            or (lane.state is LaneState.READY and partition.may_start(lane.queue[0].offset))
            for partition in self._known(partitions)
            for lane in partition.lanes.values()
        )

    def revoke(self, partitions: Iterable[PartitionT]) -> None:
        """Forget `partitions`. Work of theirs that ends later changes nothing."""
        gone = list(partitions)
        self.seal(gone)
        for partition in self._known(gone):
            self._held_bytes -= partition.held_bytes
            partition.held_bytes = 0
            del self._partitions[partition.id]

    def goes_back(self, partition: PartitionT, offset: int) -> bool:
        """Whether a record of that offset lies before one that was admitted: the log is not what it was."""
        return offset <= self._partitions[partition].offsets.last_offset

    def running_count(self, partitions: Iterable[PartitionT] | None = None) -> int:
        """Records being handled, of `partitions` or in all (those of revoked partitions included)."""
        if partitions is None:
            return self._running
        return sum(partition.running for partition in self._known(partitions))

    def next_offsets(self, partitions: Iterable[PartitionT] | None = None) -> dict[PartitionT, int]:
        """What to commit, per partition that has seen a record."""
        chosen = self._partitions.values() if partitions is None else self._known(partitions)
        return {p.id: offset for p in chosen if (offset := p.offsets.next_offset) is not None}

    def _known(self, partitions: Iterable[PartitionT]) -> list[_Partition[PartitionT, ItemT]]:
        return [self._partitions[p] for p in partitions if p in self._partitions]

    # -- records ---------------------------------------------------------------------------------------

    def admit(
        self, partition: PartitionT, offset: int, *, lane: Hashable, item: ItemT, size_bytes: int
    ) -> None:
        """Put a record at the end of its lane.

        Raises:
            KeyError: The partition is not assigned.
            ValueError: The offset does not follow the ones before.
        """
        owner = self._partitions[partition]
        owner.offsets.admit(offset)
        chosen = owner.lanes.get(lane)
        if chosen is None:
            chosen = owner.lanes[lane] = _Lane(lane, owner)
        chosen.queue.append(Work(partition, offset, item, size_bytes, chosen))
        owner.held_bytes += size_bytes
        self._held_bytes += size_bytes
        if chosen.state is LaneState.WAITING:
            owner.parked += 1
            return
        owner.queued += 1
        if chosen.state is LaneState.IDLE:
            self._make_ready(chosen)

    def take(self) -> Work[PartitionT, ItemT] | None:
        """The next record to handle, or None: nothing is ready or enough is running."""
        if self._running >= self.limits.max_running_count:
            return None
        while self._ready:
            lane = self._ready.popleft()
            if lane.state is not LaneState.READY or not lane.partition.may_start(lane.queue[0].offset):
                continue
            lane.state = LaneState.RUNNING
            lane.partition.started_offset = max(lane.partition.started_offset, lane.queue[0].offset)
            lane.partition.running += 1
            self._running += 1
            return lane.queue[0]
        return None

    def finish(self, work: Work[PartitionT, ItemT]) -> None:
        """The record is through; its lane goes on."""
        self._advance(work)
        work.lane.partition.queued -= 1
        self._settle(work)

    def defer(self, work: Work[PartitionT, ItemT]) -> None:
        """The lane goes on, the offset stays open until `settle`."""
        self._advance(work)
        owner = work.lane.partition
        owner.queued -= 1
        owner.parked += 1

    def settle(self, work: Work[PartitionT, ItemT]) -> None:
        """A deferred record is through."""
        work.lane.partition.parked -= 1
        self._settle(work)

    def retry(self, work: Work[PartitionT, ItemT], *, due: float) -> None:
        """Handle the record again at `due` (in the caller's clock); its lane waits until then."""
        lane = work.lane
        self._stop_running(lane)
        work.attempt += 1
        lane.state = LaneState.WAITING
        lane.partition.queued -= len(lane.queue)
        lane.partition.parked += len(lane.queue)
        self._sequence += 1
        heapq.heappush(self._waiting, (due, self._sequence, lane))

    def release(self, work: Work[PartitionT, ItemT]) -> None:
        """The handling was broken off: the record is first in its lane as before."""
        self._stop_running(work.lane)
        self._make_ready(work.lane)

    def wake(self, now: float) -> None:
        """Make lanes ready whose waiting is over."""
        while self._waiting and self._waiting[0][0] <= now:
            _, _, lane = heapq.heappop(self._waiting)
            lane.partition.parked -= len(lane.queue)
            lane.partition.queued += len(lane.queue)
            self._make_ready(lane)

    @property
    def next_due(self) -> float | None:
        """When the first waiting lane wakes."""
        return self._waiting[0][0] if self._waiting else None

    @property
    def has_ready(self) -> bool:
        """Whether `take` may have something, concurrency permitting."""
        return bool(self._ready)

    @property
    def waiting_count(self) -> int:
        """Lanes that wait for another attempt."""
        return len(self._waiting)

    def held_count(self) -> int:
        """Records of assigned partitions that are not finished."""
        return sum(p.queued + p.parked for p in self._partitions.values())

    def _make_ready(self, lane: _Lane[PartitionT, ItemT]) -> None:
        lane.state = LaneState.READY
        self._ready.append(lane)

    def _stop_running(self, lane: _Lane[PartitionT, ItemT]) -> None:
        lane.partition.running -= 1
        self._running -= 1

    def _advance(self, work: Work[PartitionT, ItemT]) -> None:
        lane = work.lane
        assert lane.queue[0] is work, "only the first record of a lane is handled"
        self._stop_running(lane)
        lane.queue.popleft()
        if lane.queue:
            self._make_ready(lane)
        else:
            lane.state = LaneState.IDLE
            lane.partition.lanes.pop(lane.key, None)

    def _settle(self, work: Work[PartitionT, ItemT]) -> None:
        owner = work.lane.partition
        owner.offsets.finish(work.offset)
        if self._partitions.get(work.partition) is owner:
            owner.held_bytes -= work.size_bytes
            self._held_bytes -= work.size_bytes

    # -- back pressure ---------------------------------------------------------------------------------

    def update_pauses(self, *, hold: bool = False) -> tuple[list[PartitionT], list[PartitionT]]:
        """Which partitions to pause and which to resume now.

        Args:
            hold: A neighbour is away: take nothing more from any partition.
        """
        to_pause: list[PartitionT] = []
        to_resume: list[PartitionT] = []
        for partition in self._partitions.values():
            full = self._fill(partition)
            if not partition.paused and (hold or full >= 1.0):
                partition.paused = True
                to_pause.append(partition.id)
            elif partition.paused and not hold and full <= 0.5:
                partition.paused = False
                to_resume.append(partition.id)
        return to_pause, to_resume

    def _fill(self, partition: _Partition[PartitionT, ItemT]) -> float:
        limits = self.limits
        return max(
            partition.queued / limits.max_queued_count,
            partition.offsets.uncommitted_count / limits.max_uncommitted_count,
            self._held_bytes / limits.max_held_bytes,
        )
