"""Async iterators of events: for downstream consumers, and for all there is of one run."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from contextlib import AsyncExitStack
from datetime import datetime
from functools import partial
from types import TracebackType
from typing import Any, Final, Generic, Literal, Self, TypeAlias, cast

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import CommitFailedError, ConsumerStoppedError, IllegalStateError, KafkaError
from typing_extensions import TypeVar

from towline.contracts.consumers import (
    ConsumedRecord,
    RecentIds,
    Since,
    assign,
    consumer,
    end_offsets,
    partitions_of,
    patiently,
    poll,
    refused,
    resolve,
    resolved,
)
from towline.contracts.errors import ClientError, DataElsewhereError, DecodeError, KafkaUnavailableError
from towline.contracts.events import OUTCOME_MODELS, Event, EventData
from towline.contracts.kafka import REFUSALS, backoff_s
from towline.contracts.payloads.store import PayloadStore
from towline.contracts.settings import KafkaSettings
from towline.contracts.tracing import Processing, process_attributes, tracing_is_on

_log = logging.getLogger(__name__)

Start: TypeAlias = Literal["earliest", "latest"]
DataT = TypeVar("DataT", bound=EventData, default=EventData, covariant=True)

_POLL_S: Final = 0.5
_COMMIT_EVERY_S: Final = 1.0
_LAST_COMMIT_S: Final = 5.0
_GROWTH_CHECK_S: Final = 30.0


class EventStream(Generic[DataT]):
    """The events of some topics, one after another, for ever: ``async for event in stream``.

    At least once: with a consumer group, an event is counted as handled when the next one is asked for,
    and committed within a second or when the stream has to wait or is closed. A crash, or leaving the loop
    in the middle, repeats what was not committed.

    Repeats of ids among the last `remember` events are dropped. It cannot drop what this process does not
    remember: an event handled before a restart, by another member of the group before a rebalance, or
    longer ago. Handle events so that a repeat does no harm, for example by using `event.id` as a key.

    A record that is no event of the contract is logged as `record_undecodable`, counted, and passed over;
    it never stops the stream. The broker being away only makes it wait.

    With tracing set up, the body of the loop runs in a span ``process <topic>`` of the event's own trace.

    One task at a time may iterate. Close it by ``async with``, `aclose`, or by closing the client.
    """

    def __init__(
        self,
        settings: KafkaSettings,
        topics: Sequence[str],
        *,
        client_id: str,
        group_id: str | None,
        start: Start,
        since: datetime | None,
        remember: int,
        timeout_s: float | None,
        payloads: PayloadStore | None = None,
        on_close: Callable[[EventStream[Any]], None] | None = None,
    ) -> None:
        self._settings = settings
        self._on_close = on_close
        self._payloads = payloads
        self._topics = tuple(topics)
        self._client_id = client_id
        self._group_id = group_id
        self._start: Start = start
        self._since = since
        self._timeout_s = timeout_s
        self._recent = RecentIds(remember)
        self._stack = AsyncExitStack()
        self._reader: AIOKafkaConsumer | None = None
        self._records: deque[ConsumedRecord] = deque()
        self._polling: asyncio.Task[int] | None = None
        self._current: ConsumedRecord | None = None
        self._handled: dict[TopicPartition, int] = {}
        self._committed_at = 0.0
        self._next_check = 0.0
        self._closed = False
        self._processing = Processing()
        self.undecodable_count = 0
        """Records passed over because they are no events of the contract."""
        self.repeat_count = 0
        """Events dropped because their ids were seen lately."""

    def __aiter__(self) -> Self:
        return self

    async def __aenter__(self) -> Self:
        await self._opened()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def __anext__(self) -> Event[DataT]:
        """The next event. Cancelling it loses nothing.

        Raises:
            StopAsyncIteration: The stream was closed.
            KafkaUnavailableError: No broker answered at the start, within the client's time.
            ClientError: A topic cannot be read.
            DataElsewhereError: An event's data is in a payload store, and none is configured here. The event
                is not passed over: it is raised for again.
        """
        self._processing.end()
        if self._current is not None:
            self._mark(self._current)
            self._current = None
        while not self._closed:
            reader = await self._opened()
            await self._commit_if_due(reader)
            while self._records:
                record = self._records[0]
                event = await self._event_of(record)
                if not self._records or self._records[0] is not record:
                    continue  # its partition went to another member meanwhile
                self._records.popleft()
                if event is None:
                    self.undecodable_count += 1
                elif self._recent.is_new(event.id):
                    self._current = record
                    self._begin_processing(record, event)
                    return cast("Event[DataT]", event)
                else:
                    self.repeat_count += 1
                self._mark(record)
            await self._fill(reader)
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Commit what was handled, for at most 5 s, and close. Idempotent.

        The event returned last counts as handled only if the next one was asked for.
        """
        if self._closed:
            return
        self._closed = True
        if self._on_close is not None:
            self._on_close(self)
        self._processing.end()
        reader, self._reader = self._reader, None
        try:
            if (polling := self._polling) is not None:
                polling.cancel()
                await asyncio.gather(polling, return_exceptions=True)
            if reader is not None:
                async with asyncio.timeout(_LAST_COMMIT_S):
                    await self._commit(reader)
        except TimeoutError:
            # aiokafka tries for as long as the broker is away. What was not committed comes again.
            _log.warning("commit_given_up", extra={"group_id": self._group_id})
        finally:
            await self._stack.aclose()

    def end_processing(self) -> None:
        """End the span of the event returned last, if it is not ended. Idempotent."""
        self._processing.end()

    async def _event_of(self, record: ConsumedRecord) -> Event | None:
        try:
            return await resolved(record, self._payloads)
        except DataElsewhereError:
            raise
        except DecodeError:
            return None  # its data is gone for good; it is in the log

    def _begin_processing(self, record: ConsumedRecord, event: Event) -> None:
        if not tracing_is_on():
            return
        attributes = process_attributes(
            record.topic, record.partition, record.offset, event, group=self._group_id
        )
        self._processing.begin(event, record.topic, attributes)

    def _mark(self, record: ConsumedRecord) -> None:
        self._handled[TopicPartition(record.topic, record.partition)] = record.offset + 1

    async def _opened(self) -> AIOKafkaConsumer:
        if self._closed:
            raise ClientError("the stream is closed: ask the client for a new one")
        if self._reader is not None:
            return self._reader
        async with AsyncExitStack() as opening:
            reader = await opening.enter_async_context(
                consumer(
                    self._settings,
                    client_id=self._client_id,
                    group_id=self._group_id,
                    start=self._start,
                    timeout_s=self._timeout_s,
                )
            )
            partitions = await partitions_of(reader, self._topics)
            if self._group_id is not None:
                cast("Any", reader).subscribe(self._topics, listener=_Rebalance(self, reader))
            elif self._since is None and self._start == "latest":
                assign(reader, await end_offsets(reader, partitions))
            else:
                assign(reader, await resolve(reader, partitions, self._since))
            # Closed meanwhile, the stream has nobody who would close it.
            if not self._closed:
                self._reader, self._stack = reader, opening.pop_all()
        self._next_check = asyncio.get_running_loop().time() + _GROWTH_CHECK_S
        return reader

    async def _fill(self, reader: AIOKafkaConsumer) -> None:
        loop = asyncio.get_running_loop()
        attempt = 0
        while not self._records and not self._closed:
            try:
                await self._commit_if_due(reader)
                if not await self._polled(reader):
                    await self._commit(reader)
                if self._group_id is None and loop.time() >= self._next_check:
                    self._next_check = loop.time() + _GROWTH_CHECK_S
                    await _follow_growth(reader, self._topics)
                attempt = 0
            except ConsumerStoppedError:
                return
            except REFUSALS as error:
                raise refused(error) from error
            except (KafkaError, KafkaUnavailableError) as error:
                _log.warning("topics_unreadable", extra={"topics": self._topics, "error": repr(error)})
                await asyncio.sleep(backoff_s(attempt))
                attempt += 1

    async def _polled(self, reader: AIOKafkaConsumer) -> int:
        """How many records have come to `_records`.

        As a task: while a rebalance is under way a poll ends neither in its time nor by the consumer's stop.
        It goes on when `__anext__` is cancelled: broken off it could take records along.
        """
        polling = self._polling
        if polling is None:
            polling = self._polling = asyncio.create_task(self._poll(reader), name="towline-stream-poll")
        await asyncio.wait({polling})
        self._polling = None
        return 0 if polling.cancelled() else polling.result()

    async def _poll(self, reader: AIOKafkaConsumer) -> int:
        records = await poll(reader, timeout_s=0.01 if self._handled else _POLL_S)
        self._records.extend(records)
        return len(records)

    async def _commit_if_due(self, reader: AIOKafkaConsumer) -> None:
        if asyncio.get_running_loop().time() - self._committed_at >= _COMMIT_EVERY_S:
            await self._commit(reader)

    async def _commit(self, reader: AIOKafkaConsumer) -> None:
        self._committed_at = asyncio.get_running_loop().time()
        if self._group_id is None:
            self._handled.clear()
        untyped = cast("Any", reader)
        # Partitions that went to another member meanwhile would make the broker refuse all of it.
        offsets = {tp: offset for tp, offset in self._handled.items() if tp in untyped.assignment()}
        self._handled = dict(offsets)
        if not offsets:
            return
        try:
            await untyped.commit(offsets)
        except (CommitFailedError, IllegalStateError) as error:
            # A rebalance came in between: whoever has the partitions now reads these events again.
            _log.info("commit_refused", extra={"group_id": self._group_id, "error": repr(error)})
        except KafkaError as error:
            _log.warning("commit_failed", extra={"group_id": self._group_id, "error": repr(error)})
            return
        for partition, offset in offsets.items():
            if self._handled.get(partition) == offset:
                del self._handled[partition]

    async def let_go(self, reader: AIOKafkaConsumer, revoked: Collection[TopicPartition]) -> None:
        """Partitions leave this member: commit what was handled, forget what was not."""
        await self._commit(reader)
        gone = set(revoked)
        self._records = deque(
            record for record in self._records if TopicPartition(record.topic, record.partition) not in gone
        )
        for partition in gone:
            self._handled.pop(partition, None)
        current = self._current
        if current is not None and TopicPartition(current.topic, current.partition) in gone:
            self._current = None


class _Rebalance(ConsumerRebalanceListener):
    def __init__(self, stream: EventStream[Any], reader: AIOKafkaConsumer) -> None:
        self._stream = stream
        self._reader = reader

    # aiokafka awaits what these return; only its annotations do not say so.
    async def on_partitions_revoked(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, revoked: Collection[TopicPartition]
    ) -> None:
        await self._stream.let_go(self._reader, revoked)

    async def on_partitions_assigned(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, assigned: Collection[TopicPartition]
    ) -> None:
        _log.info("partitions_assigned", extra={"partitions": len(assigned)})


async def run_events(
    settings: KafkaSettings,
    run_id: str,
    since: Since,
    *,
    client_id: str,
    timeout_s: float | None,
    payloads: PayloadStore | None = None,
) -> AsyncGenerator[Event]:
    """All events of one run from `since` on, each once, its outcome last; then it ends.

    The outcome travels on a topic of its own and may be read before earlier events: those that had been
    written before it was read come first.
    """
    names = (settings.topics.events, settings.topics.results)
    key = run_id.encode()
    loop = asyncio.get_running_loop()
    seen: set[str] = set()
    async with consumer(settings, client_id=client_id, timeout_s=timeout_s) as reader:
        assign(reader, await resolve(reader, await partitions_of(reader, names), since))
        next_check = loop.time() + _GROWTH_CHECK_S
        outcome: Event | None = None
        ends: dict[TopicPartition, int] | None = None
        while ends is None or not await _reached(reader, ends):
            for record in await patiently(lambda: poll(reader, timeout_s=_POLL_S)):
                if record.key != key:
                    continue
                event = await resolved(record, payloads)
                if event is None or event.id in seen:
                    continue
                seen.add(event.id)
                if isinstance(event.data, OUTCOME_MODELS):
                    outcome = event
                else:
                    yield event
            if ends is None and (outcome is not None or loop.time() >= next_check):
                next_check = loop.time() + _GROWTH_CHECK_S
                await patiently(lambda: _follow_growth(reader, names))
            if outcome is not None and ends is None:
                assigned = cast("Collection[TopicPartition]", cast("Any", reader).assignment())
                lifecycle = [partition for partition in assigned if partition.topic == settings.topics.events]
                ends = await patiently(partial(end_offsets, reader, lifecycle))
        assert outcome is not None, "the loop ends only after the outcome"
        yield outcome


async def _follow_growth(reader: AIOKafkaConsumer, topics: Sequence[str]) -> None:
    """Read the partitions too that `topics` have got since they were assigned, from their beginning."""
    untyped = cast("Any", reader)
    known = cast("Collection[TopicPartition]", untyped.assignment())
    partitions = await partitions_of(reader, topics)
    added = [partition for partition in partitions if partition not in known]
    if added:
        positions: dict[TopicPartition, int] = {tp: await untyped.position(tp) for tp in known}
        assign(reader, {**positions, **dict.fromkeys(added, 0)})


async def _reached(reader: AIOKafkaConsumer, ends: dict[TopicPartition, int]) -> bool:
    for partition, end in ends.items():
        if await cast("Any", reader).position(partition) < end:
            return False
    return True
