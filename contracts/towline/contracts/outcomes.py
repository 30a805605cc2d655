"""Waiting for the outcomes of many runs with one consumer."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack
from datetime import datetime
from functools import partial
from typing import Any, Final, TypeVar, cast
from weakref import WeakValueDictionary

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from towline.contracts.attributes import CE_PREFIX
from towline.contracts.consumers import (
    ConsumedRecord,
    Offsets,
    Since,
    assign,
    consumer,
    end_offsets,
    partitions_of,
    poll,
    refused,
    resolve,
    resolved,
)
from towline.contracts.errors import ClientError, DecodeError, KafkaUnavailableError, TowlineError
from towline.contracts.events import OUTCOME_MODELS, Event, RunOutcome
from towline.contracts.kafka import REFUSALS, backoff_s
from towline.contracts.payload_reference import DATAREF
from towline.contracts.payloads.store import PayloadStore
from towline.contracts.settings import KafkaSettings

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

_POLL_S: Final = 0.5
_SNAPSHOT_MAX_AGE_S: Final = 2.0
_GROWTH_CHECK_S: Final = 30.0


class Watched:
    """One run whose outcome somebody may ask for. Kept alive by whoever asks; forgotten with them."""

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id
        self.outcome: Event[RunOutcome] | None = None
        self.error: TowlineError | None = None
        self.covered = False
        """Whether everything since the run's beginning was read, or is being read."""
        self.scanning = False
        self.passed = False
        """Whether its outcome was read, and could not be had: it must be searched for."""
        self.fetching_count = 0
        """Records of it whose turn has not come, because the data of one is in a payload store."""
        self._later: Event[RunOutcome] | None = None
        self.changed = asyncio.Event()

    def seen_live(self, event: Event[RunOutcome]) -> None:
        """An outcome read as it came. It waits until the past is searched: the first outcome is the one."""
        if self.covered and not self.scanning:
            self._settle(event)
        elif self._later is None:
            self._later = event

    def scanned(self, found: Event[RunOutcome] | None) -> None:
        """The past was searched."""
        self.scanning = False
        event = found or self._later
        if event is not None:
            self._settle(event)

    def failed(self, error: TowlineError) -> None:
        """Reading has come to an end; whoever waits gets `error`, a later wait tries again."""
        self.scanning = self.covered = False
        self.error = error
        self.changed.set()

    def _settle(self, event: Event[RunOutcome]) -> None:
        if self.outcome is None:
            self.outcome = event
            self.changed.set()


class OutcomeWatch:
    """One consumer of `results` for all runs of a client, begun when an outcome is first waited for.

    A run that this client starts is known here before its request is published, so its outcome cannot
    slip by. For any other run, what is retained is searched once, by a second, passing consumer that
    serves all such runs at a time; only records whose key is a wanted run's id are decoded.
    """

    def __init__(
        self,
        settings: KafkaSettings,
        *,
        client_id: str,
        timeout_s: float | None,
        payloads: PayloadStore | None = None,
    ) -> None:
        self._settings = settings
        self._payloads = payloads
        self._client_id = client_id
        self._timeout_s = timeout_s
        self._topic = settings.topics.results
        self._runs: WeakValueDictionary[bytes, Watched] = WeakValueDictionary()
        self._stack = AsyncExitStack()
        self._reader: AIOKafkaConsumer | None = None
        self._positions: dict[TopicPartition, int] = {}
        self._live_from: dict[TopicPartition, int] = {}
        self._live: asyncio.Task[None] | None = None
        self._scans: dict[Watched, Since] = {}
        self._scan_wanted = asyncio.Event()
        self._scanner: asyncio.Task[None] | None = None
        self._lock = asyncio.Lock()
        self._asking: set[asyncio.Task[Any]] = set()
        """What is being asked of the broker for those who start and wait for runs."""
        self._fetches: deque[tuple[Watched, Callable[[], Awaitable[None]]]] = deque()
        self._fetcher: asyncio.Task[None] | None = None
        self._snapshot: tuple[float, Offsets] | None = None
        self.undecodable_count = 0

    async def open(self) -> None:
        """Connect.

        Raises:
            KafkaUnavailableError: No broker answered in time.
        """
        self._reader = await self._stack.enter_async_context(
            consumer(self._settings, client_id=self._client_id, timeout_s=self._timeout_s)
        )

    async def close(self) -> None:
        """Stop reading; whoever still waits gets a ClientError. Idempotent."""
        self._reader = None
        running = (self._live, self._scanner, self._fetcher, *self._asking)
        tasks = [task for task in running if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._live = self._scanner = self._fetcher = None
        self._fetches.clear()
        self._fail_all(_closed())
        await self._stack.aclose()

    def watched(self, run_id: str) -> Watched:
        """The run's entry, made if nobody has it yet."""
        key = run_id.encode()
        found = self._runs.get(key)
        if found is None:
            found = self._runs[key] = Watched(run_id)
        return found

    async def before_start(self, watched: Watched) -> Offsets:
        """Call before publishing a run's request: its events will come after the offsets returned."""
        if self._live is not None:
            watched.covered = True
        now = asyncio.get_running_loop().time()
        if self._snapshot is None or now - self._snapshot[0] > _SNAPSHOT_MAX_AGE_S:
            self._snapshot = (now, await self._until_closed(self._ends()))
        return self._snapshot[1]

    async def _ends(self) -> Offsets:
        reader = self._open_reader()
        topics = self._settings.topics
        return await end_offsets(reader, await partitions_of(reader, (topics.results, topics.events)))

    async def wait(self, watched: Watched, since: Since) -> Event[RunOutcome]:
        """The run's outcome, once there is one.

        Args:
            watched: From `watched`.
            since: No earlier than this must be searched, if the run is not watched from its start.

        Raises:
            ClientError: `results` cannot be read, or the client was closed.
            DecodeError: Its data is in a payload store, and cannot be had from there.
        """
        while watched.outcome is None:
            watched.error = None
            watched.changed.clear()
            if not watched.covered:
                await self._until_closed(self._cover(watched, since))
            await watched.changed.wait()
            if watched.outcome is None and watched.error is not None:
                raise watched.error
        return watched.outcome

    async def _until_closed(self, asking: Coroutine[Any, Any, _T]) -> _T:
        """What `asking` gives. A consumer that is closed meanwhile may never answer it.

        Raises:
            ClientError: The client was closed.
        """
        task = asyncio.create_task(asking)
        self._asking.add(task)
        try:
            await asyncio.wait({task})
        finally:
            self._asking.discard(task)
            task.cancel()
        if task.cancelled():
            raise _closed()
        return task.result()

    async def _cover(self, watched: Watched, since: Since) -> None:
        async with self._lock:
            if watched.covered:
                return
            await self._begin(since)
            watched.covered = True
            if self._was_read_live(since) and not watched.passed:
                watched.scanned(None)
                return
            watched.scanning = True
            self._scans[watched] = since
            self._scan_wanted.set()
            if self._scanner is None:
                self._scanner = asyncio.create_task(self._scan_forever(), name="towline-outcome-scan")

    def _was_read_live(self, since: Since) -> bool:
        """Whether live reading began no later than `since`: a run known since then was not missed."""
        return isinstance(since, dict) and all(
            begin <= cast("Offsets", since).get(partition, 0) for partition, begin in self._live_from.items()
        )

    async def _begin(self, since: Since) -> None:
        """Begin to read live, at `since` if these are offsets, unless it has begun."""
        if self._live is not None:
            return
        reader = self._open_reader()
        partitions = await partitions_of(reader, (self._topic,))
        self._positions = (
            await resolve(reader, partitions, cast("Offsets", since))
            if isinstance(since, dict)
            else await end_offsets(reader, partitions)
        )
        self._live_from = dict(self._positions)
        assign(reader, self._positions)
        self._live = asyncio.create_task(self._read_forever(reader), name="towline-outcomes")

    def _open_reader(self) -> AIOKafkaConsumer:
        if self._reader is None:
            raise ClientError("the client is not open: use it inside its async with block")
        return self._reader

    async def _read_forever(self, reader: AIOKafkaConsumer) -> None:
        loop = asyncio.get_running_loop()
        next_check = loop.time() + _GROWTH_CHECK_S
        attempt = 0
        while True:
            try:
                records = await poll(reader, timeout_s=_POLL_S)
                attempt = 0
                for record in records:
                    self._positions[TopicPartition(record.topic, record.partition)] = record.offset + 1
                    await self._live_record(record)
                if loop.time() >= next_check:
                    next_check = loop.time() + _GROWTH_CHECK_S
                    await self._follow_growth(reader)
            except (KafkaError, ClientError, KafkaUnavailableError) as error:
                _log.warning("results_unreadable", extra={"topic": self._topic, "error": repr(error)})
                if (refusal := _refusal(error)) is not None:
                    self._fail_all(refusal)
                await asyncio.sleep(backoff_s(attempt))
                attempt += 1

    async def _live_record(self, record: ConsumedRecord) -> None:
        watched = self._runs.get(record.key) if record.key is not None else None
        if watched is not None:
            await self._take(record, watched, watched.seen_live)

    async def _take(
        self, record: ConsumedRecord, watched: Watched, found: Callable[[Event[RunOutcome]], None]
    ) -> None:
        """Tell `found` of the outcome in `record`, in the order of the run's records.

        Data that is in a payload store is fetched meanwhile: the store may be away, and other runs must not
        wait for it.
        """

        async def look() -> None:
            if (event := await self._outcome_in(record, watched)) is not None:
                found(event)

        if watched.fetching_count or any(name == f"{CE_PREFIX}{DATAREF}" for name, _ in record.headers):
            self._fetch(watched, look)
        else:
            await look()

    def _fetch(self, watched: Watched, work: Callable[[], Awaitable[None]]) -> None:
        watched.fetching_count += 1
        self._fetches.append((watched, work))
        if self._fetcher is None or self._fetcher.done():
            self._fetcher = asyncio.create_task(self._fetch_all(), name="towline-outcome-data")

    async def _fetch_all(self) -> None:
        while self._fetches:
            watched, work = self._fetches.popleft()
            try:
                await work()
            finally:
                watched.fetching_count -= 1

    async def _outcome_in(self, record: ConsumedRecord, watched: Watched) -> Event[RunOutcome] | None:
        try:
            event = await resolved(record, self._payloads)
        except DecodeError as error:
            # The run has ended, and how cannot be read: whoever waits must not wait for ever.
            watched.passed = True
            watched.failed(error)
            return None
        if event is None:
            self.undecodable_count += 1
        elif isinstance(event.data, OUTCOME_MODELS):
            return cast("Event[RunOutcome]", event)
        return None

    async def _follow_growth(self, reader: AIOKafkaConsumer) -> None:
        partitions = await partitions_of(reader, (self._topic,))
        added = [partition for partition in partitions if partition not in self._positions]
        if added:
            _log.info("topic_grew", extra={"topic": self._topic, "partitions": len(partitions)})
            self._positions.update(dict.fromkeys(added, 0))
            assign(reader, self._positions)

    async def _scan_forever(self) -> None:
        attempt = 0
        while True:
            await self._scan_wanted.wait()
            self._scan_wanted.clear()
            wanted, self._scans = self._scans, {}
            try:
                await self._scan(wanted)
                # Kept here, it would keep the runs alive until the next search.
                wanted = {}
                attempt = 0
            except (KafkaError, ClientError, KafkaUnavailableError) as error:
                _log.warning("results_unreadable", extra={"topic": self._topic, "error": repr(error)})
                if (refusal := _refusal(error)) is not None:
                    for watched in wanted:
                        watched.failed(refusal)
                else:
                    self._scans = {**wanted, **self._scans}
                    self._scan_wanted.set()
                await asyncio.sleep(backoff_s(attempt))
                attempt += 1

    async def _scan(self, wanted: dict[Watched, Since]) -> None:
        by_key = {watched.run_id.encode(): watched for watched in wanted if watched.scanning}
        async with consumer(
            self._settings, client_id=f"{self._client_id}-scan", timeout_s=self._timeout_s
        ) as reader:
            partitions = await partitions_of(reader, (self._topic,))
            positions = await _earliest_of(
                reader, partitions, [wanted[watched] for watched in by_key.values()]
            )
            ends = await end_offsets(reader, partitions)
            left = {partition: end for partition, end in ends.items() if positions[partition] < end}
            assign(reader, {partition: positions[partition] for partition in left})
            while left and by_key:
                for record in await poll(reader, timeout_s=_POLL_S, max_records=5000):
                    watched = by_key.get(record.key) if record.key is not None else None
                    if watched is None:
                        continue
                    await self._take(record, watched, watched.scanned)
                    if watched.outcome is not None or watched.error is not None:
                        del by_key[watched.run_id.encode()]
                left = {
                    partition: end
                    for partition, end in left.items()
                    if await cast("Any", reader).position(partition) < end
                }
        for watched in by_key.values():
            if watched.fetching_count:
                self._fetch(watched, partial(_nothing_more, watched))
            else:
                watched.scanned(None)

    def _fail_all(self, error: ClientError) -> None:
        for watched in list(self._runs.values()):
            if watched.outcome is None:
                watched.failed(error)


async def _nothing_more(watched: Watched) -> None:
    watched.scanned(None)


async def _earliest_of(
    reader: AIOKafkaConsumer, partitions: list[TopicPartition], wanted: list[Since]
) -> dict[TopicPartition, int]:
    """The offsets from which on all of `wanted` is found; what is the same is asked for once."""
    if any(since is None for since in wanted):
        return await resolve(reader, partitions, None)
    positions: dict[TopicPartition, int] = {}
    times = [since for since in wanted if isinstance(since, datetime)]
    # Runs that were started within a short time share one snapshot of offsets.
    distinct: dict[int, Since] = {id(since): since for since in wanted if not isinstance(since, datetime)}
    if times:
        distinct[0] = min(times)
    for since in distinct.values():
        for partition, offset in (await resolve(reader, partitions, since)).items():
            positions[partition] = min(offset, positions.get(partition, offset))
    return positions


def _closed() -> ClientError:
    return ClientError("the client was closed: wait for results inside its async with block")


def _refusal(error: Exception) -> ClientError | None:
    """What to tell those who wait, if waiting does not mend it."""
    if isinstance(error, REFUSALS):
        return refused(cast("KafkaError", error))
    return error if isinstance(error, ClientError) else None
