"""Ordered at-least-once consumption: the lanes over an aiokafka consumer.

The consumer lives in sessions. A session is one membership in the group; when it breaks (the broker is
away, the group forgot us) the next one is begun after a backoff, for as long as the process runs.
Nothing is committed but explicit offsets, each the highest below which everything is finished.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from typing import Any, Final, Generic, TypeVar

from aiokafka import ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import CommitFailedError, IllegalStateError, KafkaError

from towline.contracts.settings import KafkaSettings
from towline.delivery.backoff import Backoff
from towline.delivery.lanes import Limits
from towline.delivery.membership import GroupMember, group_member
from towline.delivery.pacing import ReadPace
from towline.delivery.processing import Handler, Policy, Processor, Read, WriteDeadLetter

logger = logging.getLogger(__name__)
MessageT = TypeVar("MessageT")

_POLL_MS: Final = 200
_BATCH_COUNT: Final = 1_000
_STOP_CLIENT_S: Final = 3.0
_DRAINS_PER_REBALANCE: Final = 3
"""To let handlers finish, to break off those that do not, and to commit."""
_REBALANCE_MARGIN_S: Final = 5.0
_LASTING_SESSION_S: Final = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsumerOptions:
    """How one consumer behaves."""

    group_id: str
    topics: tuple[str, ...]
    limits: Limits = field(default_factory=Limits)
    policy: Policy = field(default_factory=Policy)
    commit_every_s: float = 0.5
    """Offsets are committed at most this often: what a crash makes repeat."""
    drain_s: float = 8.0
    """Time for running handlers to finish when partitions are taken away or the consumer stops."""
    session_timeout_s: float = 10.0
    """Kafka takes our partitions away after so long without a heartbeat."""
    stuck_after_s: float = 120.0
    """Without progress for so long the consumer calls itself not alive."""


def no_hold() -> str | None:
    """Never hold."""
    return None


class Consumer(Generic[MessageT]):
    """Consumes topics as a member of a group, lane by lane.

    `run` does the work until `stop` is called or its task is cancelled. Both drain.

    Args:
        kafka: Where Kafka is.
        options: Group, topics and limits.
        read: From a record to its lane and message.
        handle: Does the work and answers with an outcome. Must bound its own waits.
        dead_letter: Writes one dead letter, acknowledged when it returns.
        hold: Why nothing should be consumed now (a neighbour is away), or None. Called often, must be quick.
    """

    def __init__(
        self,
        kafka: KafkaSettings,
        options: ConsumerOptions,
        *,
        read: Read[MessageT],
        handle: Handler[MessageT],
        dead_letter: WriteDeadLetter,
        hold: Callable[[], str | None] = no_hold,
    ) -> None:
        self._kafka = kafka
        self.options = options
        self._hold = hold
        self._held: str | None = None
        self.processor: Processor[MessageT] = Processor(
            read=read, handle=handle, dead_letter=dead_letter, limits=options.limits, policy=options.policy
        )
        self._client: GroupMember | None = None
        self._assigned: set[TopicPartition] = set()
        self._committed: dict[TopicPartition, int] = {}
        self._fences: dict[TopicPartition, tuple[int, float]] = {}
        self._fetching: asyncio.Task[None] | None = None
        self._commit_task: asyncio.Task[None] | None = None
        self._next_commit = 0.0
        self._stopping = asyncio.Event()
        self._progress_at = time.monotonic()
        self._longest_running_s = 0.0
        self._joined = False
        self._pace = ReadPace()
        self.lag = 0
        """Records in our partitions above what is finished, as of the last commit."""

    @property
    def on_hold(self) -> str | None:
        """Why nothing is consumed now, or None."""
        return self._held

    # -- life ------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Consume until stopped. Trouble with Kafka is logged and outlived, never raised.

        Raises:
            Exception: A bug in the consumer itself; the process should end and be started again.
        """
        backoff, attempt = Backoff(first_s=0.2, longest_s=5.0), 0
        try:
            while not self._stopping.is_set():
                began = time.monotonic()
                try:
                    await self._session()
                except (KafkaError, OSError) as error:
                    attempt = 1 if time.monotonic() - began > _LASTING_SESSION_S else attempt + 1
                    logger.warning(
                        "kafka_session_lost",
                        extra={"group": self.options.group_id, "error": repr(error), "attempt": attempt},
                    )
                    await _end(self._stopping.wait(), backoff.delay_s(attempt))
        finally:
            await self.processor.stop((), within_s=1.0)

    def stop(self) -> None:
        """Ask `run` to drain and end. Idempotent; returns at once."""
        self._stopping.set()
        if self._fetching is not None:
            self._fetching.cancel()

    async def _session(self) -> None:
        self._progress_at = time.monotonic()
        client = self._client = self._new_member()
        client.subscribe(topics=list(self.options.topics), listener=_Listener(self))
        try:
            await client.start()
            logger.info("kafka_session_began", extra={"group": self.options.group_id})
            while not self._stopping.is_set():
                await self._step(client)
        finally:
            await self._end_session(client)

    def _renew(self, since: float) -> None:
        """Kafka knew us at `since` (the loop's time): for a session it gives our partitions to nobody.

        aiokafka goes on for longer: a process that was stopped or cut off still has its records in hand, and
        fetches more, until Kafka tells it at a heartbeat that somebody else has its partitions.
        """
        self.processor.ours_until = since + self.options.session_timeout_s

    @property
    def has_lapsed(self) -> bool:
        """Whether somebody else may have our partitions by now, as far as we have heard from Kafka."""
        return bool(self._assigned) and not self.processor.are_ours()

    async def _step(self, client: GroupMember) -> None:
        self._apply_hold()
        self._apply_pauses(client)
        # getmany hands out records and we admit them in one go: no rebalance can come in between. But it
        # waits without bound while a rebalance is under way, so it runs as a task that can be ended.
        fetch = self._fetching = asyncio.create_task(self._fetch(client), name="delivery-fetch")
        await asyncio.wait({fetch}, timeout=self.options.stuck_after_s / 2)
        if not fetch.done():
            await _end_task(fetch, 0)
            raise KafkaError("no assignment in time: joining the group again")
        if not fetch.cancelled():
            fetch.result()
        if self.processor.failure is not None:
            raise self.processor.failure
        self._progress_at = time.monotonic()
        self._longest_running_s = self.processor.longest_running_s()
        self._commit_if_due(client)

    async def _fetch(self, client: GroupMember) -> None:
        await asyncio.sleep(self._pace.wait_s(now=time.monotonic()))
        batches = await client.getmany(timeout_ms=_POLL_MS, max_records=_BATCH_COUNT)
        if batches:
            self._pace.note(now=time.monotonic())
        for partition, records in batches.items():
            if partition in self._assigned:
                self._begin_anew_if_back(partition, records[0].offset)
                self.processor.admit(partition, records, fence=self._fence(client, partition))
        self.processor.pump()

    def _begin_anew_if_back(self, partition: TopicPartition, offset: int) -> None:
        """A topic that was made anew, or a log that lost its end, is read from its beginning by aiokafka."""
        if not self.processor.lanes.goes_back(partition, offset):
            return
        logger.error(
            "log_went_back",
            extra={
                "group": self.options.group_id,
                "topic": partition.topic,
                "partition": partition.partition,
                "offset": offset,
                "did": "read it from there; what is gone from it and was not begun is not handled",
            },
        )
        # The old offsets mean nothing any more: what still runs of them may end, and moves no position.
        self.processor.lanes.revoke((partition,))
        self.processor.lanes.assign((partition,))
        self._committed.pop(partition, None)
        self._fences.pop(partition, None)

    def _fence(self, client: GroupMember, partition: TopicPartition) -> tuple[int, float] | None:
        """The partition's end at the first fetch after it became ours, and the time then."""
        if partition not in self._fences:
            try:
                end = client.highwater(partition)
            except (AssertionError, IllegalStateError):
                end = None  # taken away meanwhile
            if end is None:
                return None
            self._fences[partition] = end, time.monotonic()
        return self._fences[partition]

    async def _end_session(self, client: GroupMember) -> None:
        self._joined = False
        partitions = set(self._assigned)
        if partitions:
            await self._give_up(client, partitions)
        await _end(client.stop(), _STOP_CLIENT_S)
        self._client = None

    def _new_member(self) -> GroupMember:
        options = self.options
        return group_member(
            self._kafka,
            accepted=self._renew,
            group_id=options.group_id,
            session_timeout_s=options.session_timeout_s,
            rebalance_timeout_s=options.drain_s * _DRAINS_PER_REBALANCE + _REBALANCE_MARGIN_S,
            poll_s=options.stuck_after_s,
        )

    # -- rebalance -------------------------------------------------------------------------------------

    async def on_revoked(self, partitions: Iterable[TopicPartition]) -> None:
        """Drain, commit, forget. Called by aiokafka before partitions go to another member."""
        self._joined = False
        client = self._client
        if client is not None:
            await self._give_up(client, set(partitions) & self._assigned)

    def on_assigned(self, partitions: Iterable[TopicPartition]) -> None:
        """Begin with fresh lanes. Called by aiokafka with the whole new assignment."""
        self._assigned = set(partitions)
        self._renew(asyncio.get_running_loop().time())
        self._committed.clear()
        self._fences.clear()
        self.processor.lanes.assign(self._assigned)
        self._joined = True
        logger.info(
            "partitions_assigned", extra={"group": self.options.group_id, "count": len(self._assigned)}
        )

    async def _give_up(self, client: GroupMember, partitions: set[TopicPartition]) -> None:
        # What is not ours any more is broken off at once.
        within_s = 0.0 if self.has_lapsed else self.options.drain_s
        await self.processor.drain(partitions, within_s=within_s)
        if self._commit_task is not None:
            await _end_task(self._commit_task, 1.0)
        await _end(self._commit(client, partitions), self.options.drain_s)
        self.processor.lanes.revoke(partitions)
        self._assigned -= partitions
        for partition in partitions:
            self._committed.pop(partition, None)

    # -- offsets ---------------------------------------------------------------------------------------

    def _commit_if_due(self, client: GroupMember) -> None:
        now = time.monotonic()
        if now < self._next_commit or (self._commit_task is not None and not self._commit_task.done()):
            return
        self._next_commit = now + self.options.commit_every_s
        self.lag = self._measure_lag(client)
        self._commit_task = asyncio.create_task(self._commit(client, self._assigned), name="delivery-commit")

    async def _commit(self, client: GroupMember, partitions: Iterable[TopicPartition]) -> None:
        offsets = {
            partition: offset
            for partition, offset in self.processor.lanes.next_offsets(partitions).items()
            if self._committed.get(partition) != offset
        }
        if not offsets:
            return
        try:
            await client.commit(offsets)
        except (CommitFailedError, IllegalStateError) as error:
            # A rebalance came first: what we could not commit is delivered again, to whoever has it now.
            logger.info("commit_refused", extra={"group": self.options.group_id, "error": repr(error)})
        except KafkaError as error:
            logger.warning("commit_failed", extra={"group": self.options.group_id, "error": repr(error)})
        else:
            self._committed.update(offsets)

    def _measure_lag(self, client: GroupMember) -> int:
        finished = self.processor.lanes.next_offsets()
        lag = 0
        for partition in self._assigned:
            try:
                end = client.highwater(partition)
            except (AssertionError, IllegalStateError):
                continue  # taken away meanwhile
            if end is not None and partition in finished:
                lag += max(0, end - finished[partition])
        return lag

    # -- back pressure ---------------------------------------------------------------------------------

    def _apply_hold(self) -> None:
        held = self._hold()
        if (held is None) != (self._held is None):
            event = "consumption_resumed" if held is None else "consumption_held"
            logger.warning(event, extra={"group": self.options.group_id, "reason": held or self._held})
        self._held = held
        self.processor.held = held is not None
        if held is None:
            self.processor.pump()

    def _apply_pauses(self, client: GroupMember) -> None:
        to_pause, to_resume = self.processor.lanes.update_pauses(hold=self._held is not None)
        try:
            client.pause(*to_pause)
            client.resume(*to_resume)
        except IllegalStateError:
            # Taken away meanwhile: the listener will tell, and lanes begin afresh.
            logger.debug("pause_of_unassigned_partition", extra={"group": self.options.group_id})

    def has_partition(self, number: int) -> bool:
        """Whether a partition of that number is ours now: of all members, exactly one says yes."""
        return any(partition.partition == number for partition in self._assigned)

    # -- health; may be called from another thread -----------------------------------------------------

    def not_alive(self) -> str | None:
        """What is wrong with the consumer that a restart would mend, or None."""
        idle_s = time.monotonic() - self._progress_at
        if idle_s > self.options.stuck_after_s:
            return f"consumer {self.options.group_id} made no progress for {idle_s:.0f} s"
        if self._longest_running_s > self.options.stuck_after_s:
            return (
                f"a handler of {self.options.group_id} has been running for {self._longest_running_s:.0f} s"
            )
        return None

    def not_ready(self) -> str | None:
        """Why the consumer does not consume now, or None."""
        if not self._joined:
            return f"consumer {self.options.group_id} has not joined its group (is Kafka up?)"
        return self._held


class _Listener(ConsumerRebalanceListener):
    def __init__(self, consumer: Consumer[Any]) -> None:
        self._consumer = consumer

    async def on_partitions_revoked(  # pyright: ignore[reportIncompatibleMethodOverride] - may be a coroutine
        self, revoked: Iterable[TopicPartition]
    ) -> None:
        await self._consumer.on_revoked(revoked)

    def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        self._consumer.on_assigned(assigned)


async def _end(work: Coroutine[Any, Any, Any], timeout_s: float) -> None:
    """Run `work` for at most `timeout_s`; as a task: aiokafka may raise CancelledError by itself."""
    await _end_task(asyncio.ensure_future(work), timeout_s)


async def _end_task(task: asyncio.Task[Any], timeout_s: float) -> None:
    await asyncio.wait({task}, timeout=timeout_s)
    if not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=0.5)
    if task.done() and not task.cancelled() and (error := task.exception()) is not None:
        logger.warning("ended_with_error", extra={"error": repr(error)})
