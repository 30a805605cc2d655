"""Runs the handler over the lanes and carries out its answers. Knows no Kafka client but its records."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Hashable, Iterable
from dataclasses import dataclass, field, replace
from typing import Final, Generic, TypeAlias, TypeVar, cast

from aiokafka import TopicPartition

from towline.delivery.backoff import Backoff
from towline.delivery.lanes import Lanes, Limits, Work
from towline.delivery.membership import KafkaRecord
from towline.delivery.outcomes import DeadLetter, Deferred, Done, Outcome, Retry

logger = logging.getLogger(__name__)

MessageT = TypeVar("MessageT")

_TURN_COUNT: Final = 64
"""Records that one task handles before it lets others run, when the handler never waits."""
_DRAIN_POLL_S: Final = 0.01
_BREAK_OFF_S: Final = 2.0
"""Least time for what is broken off to come to its end."""
HANDLER_FAILED: Final = "handler_failed"


@dataclass(frozen=True, slots=True)
class Delivery(Generic[MessageT]):
    """One record on its way to the handler."""

    record: KafkaRecord
    message: MessageT
    """What `read` made of the record."""
    attempt: int
    """1 at first, then counted up by each retry in this process."""
    received_at: float
    """Monotonic seconds when this process first had it: graces count from here."""
    assigned_at: float | None = None
    """Set when another process may have handled the record before, and have left no more trace of it than
    its effects: it was in the partition when that became ours, at this moment in monotonic seconds."""


Handler: TypeAlias = Callable[[Delivery[MessageT]], Awaitable[Outcome]]
Read: TypeAlias = Callable[[KafkaRecord], tuple[Hashable, MessageT]]
"""From a record to its lane and message. Must not raise: what can't be read is a message too."""
WriteDeadLetter: TypeAlias = Callable[[KafkaRecord, DeadLetter], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How a handler's failures are dealt with."""

    backoff: Backoff = field(default_factory=Backoff)
    failures_max_count: int = 5
    """After so many exceptions from the handler the record becomes a dead letter (`handler_failed`)."""


@dataclass(slots=True)
class Counts:
    """What happened so far in this process, for metrics."""

    admitted: int = 0
    done: int = 0
    deferred: int = 0
    retried: Counter[str] = field(default_factory=Counter[str])
    dead_lettered: Counter[str] = field(default_factory=Counter[str])


@dataclass(frozen=True, slots=True)
class _Unreadable:
    """Stands for the message of a record over which `read` itself failed."""

    error: Exception


_Work: TypeAlias = Work[TopicPartition, Delivery[MessageT]]


class Processor(Generic[MessageT]):
    """Handles records lane by lane with bounded concurrency.

    Use it from one event loop. Tasks it starts end in `stop`, or in `revoke` if they are of those partitions.
    """

    def __init__(
        self,
        *,
        read: Read[MessageT],
        handle: Handler[MessageT],
        dead_letter: WriteDeadLetter,
        limits: Limits | None = None,
        policy: Policy | None = None,
    ) -> None:
        self.lanes: Lanes[TopicPartition, Delivery[MessageT]] = Lanes(limits)
        self.counts = Counts()
        self.held = False
        """While true no record's handling is started."""
        self.ours_until = math.inf
        """In the loop's time: from then on the partitions may have been given to somebody else."""
        self._read = read
        self._handle = handle
        self._dead_letter = dead_letter
        self._policy = policy or Policy()
        self._runners: dict[asyncio.Task[None], _Work[MessageT] | None] = {}
        self._spare_runner = False
        self._deferred: dict[asyncio.Task[None], _Work[MessageT]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self.failure: BaseException | None = None
        """A bug that ended a runner: the consumer can't go on and must be ended by its owner."""
        self._began: dict[int, float] = {}

    # -- in --------------------------------------------------------------------------------------------

    def admit(
        self,
        partition: TopicPartition,
        records: Iterable[KafkaRecord],
        *,
        fence: tuple[int, float] | None = None,
    ) -> None:
        """Take on records of an assigned partition, in order of their offsets.

        Args:
            partition: Where they are from.
            records: The records.
            fence: The partition's end when it became ours, and when that was: what is below may have been
                handled before.
        """
        now = time.monotonic()
        fenced_offset, assigned_at = fence or (0, now)
        for record in records:
            try:
                lane, message = self._read(record)
            except Exception as error:  # noqa: BLE001 - one record must never stop its partition
                lane, message = object(), cast("MessageT", _Unreadable(error))
            size = len(record.value or b"") + len(record.key or b"") + 200
            self.counts.admitted += 1
            delivery = Delivery(
                record, message, 1, now, assigned_at if record.offset < fenced_offset else None
            )
            self.lanes.admit(partition, record.offset, lane=lane, item=delivery, size_bytes=size)

    def pump(self) -> None:
        """Start what may start now."""
        loop = asyncio.get_running_loop()
        self.lanes.wake(loop.time())
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if (due := self.lanes.next_due) is not None:
            self._timer = loop.call_at(due, self.pump)
        self._start_runner()

    def longest_running_s(self) -> float:
        """Seconds for which the oldest unfinished call of the handler has been running."""
        oldest = min(self._began.values(), default=None)
        return 0.0 if oldest is None else asyncio.get_running_loop().time() - oldest

    # -- running ---------------------------------------------------------------------------------------

    def _start_runner(self) -> None:
        # One at a time: a runner that has to wait starts the next, so a handler that never waits needs one.
        if self._spare_runner or self.held or not self.lanes.has_ready or not self.are_ours():
            return
        if len(self._runners) >= self.lanes.limits.max_running_count:
            return
        self._spare_runner = True
        runner = asyncio.create_task(self._run(), name="delivery-runner")
        self._runners[runner] = None
        runner.add_done_callback(self._on_runner_end)

    def are_ours(self) -> bool:
        """Whether nobody else can have the partitions."""
        return asyncio.get_running_loop().time() < self.ours_until

    def _on_runner_end(self, runner: asyncio.Task[None]) -> None:
        self._runners.pop(runner, None)
        if not runner.cancelled() and (error := runner.exception()) is not None:
            self.failure = error
            self.held = True
        self._start_runner()

    async def _run(self) -> None:
        runner = asyncio.current_task()
        assert runner is not None
        self._spare_runner = False
        count = 0
        loop = asyncio.get_running_loop()
        # Looked at before each record: a process that was stopped goes on with whatever it was at.
        while not self.held and self.are_ours() and (work := self.lanes.take()) is not None:
            self._start_runner()
            self._runners[runner] = work
            self._began[id(work)] = loop.time()
            try:
                outcome = await self._attempt(work)
            except asyncio.CancelledError:
                self.lanes.release(work)
                raise
            finally:
                self._began.pop(id(work), None)
                self._runners[runner] = None
            self._apply(work, outcome)
            count += 1
            if count % _TURN_COUNT == 0:
                await asyncio.sleep(0)

    async def _attempt(self, work: _Work[MessageT]) -> Outcome:
        delivery = work.item
        if isinstance(delivery.message, _Unreadable):
            letter = DeadLetter("unreadable", f"{delivery.message.error!r}")
            return await self._write_dead_letter(work, letter)
        try:
            if work.attempt > 1:
                delivery = replace(delivery, attempt=work.attempt)
            outcome = await self._handle(delivery)
        except Exception as error:
            work.failures += 1
            logger.exception("handler_failed", extra=_where(work) | {"attempt": work.attempt})
            if work.failures < self._policy.failures_max_count:
                return Retry(HANDLER_FAILED)
            outcome = DeadLetter(HANDLER_FAILED, f"{type(error).__name__}: {error}")
        if isinstance(outcome, DeadLetter):
            return await self._write_dead_letter(work, outcome)
        return outcome

    async def _write_dead_letter(self, work: _Work[MessageT], outcome: DeadLetter) -> Outcome:
        try:
            await self._dead_letter(work.item.record, outcome)
        except Exception:  # whatever the cause, the record must not be lost: try again
            logger.warning("dead_letter_not_written", extra=_where(work), exc_info=True)
            return Retry("dead_letter_not_written")
        self.counts.dead_lettered[outcome.reason] += 1
        logger.warning(
            "dead_lettered", extra=_where(work) | {"reason": outcome.reason, "error": outcome.error}
        )
        return outcome

    def _apply(self, work: _Work[MessageT], outcome: Outcome) -> None:
        match outcome:
            case Retry():
                self.counts.retried[outcome.reason] += 1
                after_s = outcome.after_s
                if after_s is None:
                    after_s = self._policy.backoff.delay_s(work.attempt)
                self.lanes.retry(work, due=asyncio.get_running_loop().time() + after_s)
                self.pump()
            case Deferred():
                self.counts.deferred += 1
                self.lanes.defer(work)
                task = asyncio.create_task(outcome.ending, name="delivery-deferred")
                self._deferred[task] = work
                task.add_done_callback(self._on_deferred_end)
            case Done() | DeadLetter():
                self.counts.done += 1
                self.lanes.finish(work)

    def _on_deferred_end(self, task: asyncio.Task[None]) -> None:
        work = self._deferred.pop(task)
        if task.cancelled() and task.cancelling():
            return  # broken off: it comes again
        # aiokafka and grpc may raise CancelledError by themselves.
        error = asyncio.CancelledError("by itself") if task.cancelled() else task.exception()
        if error is None:
            self.lanes.settle(work)
            self.counts.done += 1
            return
        logger.error("deferred_failed", extra=_where(work), exc_info=error)
        follow_up = asyncio.create_task(self._bury(work, error), name="delivery-deferred-failed")
        self._deferred[follow_up] = work
        follow_up.add_done_callback(self._on_deferred_end)

    async def _bury(self, work: _Work[MessageT], error: BaseException) -> None:
        letter = DeadLetter(HANDLER_FAILED, f"{type(error).__name__}: {error}")
        attempt = 1
        while isinstance(await self._write_dead_letter(work, letter), Retry):
            await asyncio.sleep(self._policy.backoff.delay_s(attempt))
            attempt += 1

    # -- out -------------------------------------------------------------------------------------------

    async def drain(self, partitions: Iterable[TopicPartition], *, within_s: float) -> None:
        """Start nothing new of `partitions`, let what runs finish; break off what is left after `within_s`.

        What lies before a record that was started is handled as well, unless nothing is (`held`): see
        `Lanes.close`. Records that wait for their retry stay as they are, and hold the offset.

        Deferred records' endings are broken off at once: they can take minutes, and bear repetition.
        """
        gone = set(partitions)
        self.lanes.close(gone)
        endings = [task for task, work in self._deferred.items() if work.partition in gone]
        for task in endings:
            task.cancel()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + within_s
        self._start_runner()
        while self._draining_count(gone) and loop.time() < deadline:  # noqa: ASYNC110 - bounded
            await asyncio.sleep(_DRAIN_POLL_S)
        # What is broken off is ready again: it must not be started anew, in a partition that is somebody
        # else's by then.
        self.lanes.seal(gone)
        late = [task for task, work in self._runners.items() if work and work.partition in gone]
        for task in late:
            task.cancel()
        if late or endings:
            await asyncio.wait([*late, *endings], timeout=max(within_s, _BREAK_OFF_S))
        if late:
            logger.warning("drain_cut_short", extra={"running": len(late)})

    def _draining_count(self, partitions: set[TopicPartition]) -> int:
        if self.held or not self.are_ours():
            return self.lanes.running_count(partitions)
        return self.lanes.closing_count(partitions)

    async def stop(self, partitions: Iterable[TopicPartition], *, within_s: float) -> None:
        """Drain, then end every task."""
        self.held = True
        await self.drain(partitions, within_s=within_s)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        left = [*self._runners, *self._deferred]
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left, timeout=within_s)


def _where(work: _Work[MessageT]) -> dict[str, object]:
    return {
        "topic": work.partition.topic,
        "partition": work.partition.partition,
        "offset": work.offset,
    }
