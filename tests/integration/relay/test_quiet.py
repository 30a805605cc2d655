"""A relay to which nobody listens reads less often; one that is listened to, as quickly as ever."""

from __future__ import annotations

import asyncio
import itertools
import statistics
import time
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
import redis.asyncio
from aiokafka.partitioner import murmur2
from tests.integration.relay.conftest import Publisher, StartRelay
from tests.integration.relay.reading import iterate_sse
from tests.integration.relay.valkey import Valkey
from tests.waiting import eventually_async

from towline.relay.keys import Keys

_KEYS = Keys()
_EVERY_S = 0.05
_PARTITIONS = 3


@dataclass
class Books:
    """What the relays have written, asked of Redis: to ask the relays themselves would be to listen."""

    client: redis.asyncio.Redis

    async def reads(self) -> dict[str, int]:
        """How many reads brought each relay something, by its mark: of events only, not of outcomes."""
        marks = [key async for key in self.client.scan_iter(match=f"{_KEYS.mark('')}*")]
        return {mark: int(await self.client.get(mark) or 0) for mark in marks}

    async def read_count(self) -> int:
        return sum((await self.reads()).values())

    async def known(self, run_id: str) -> bool:
        return bool(await self.client.exists(_KEYS.run(run_id)))

    async def listened(self) -> bool:
        return bool(await self.client.exists(_KEYS.listened))


@pytest.fixture
async def books(own_valkey: Valkey) -> AsyncIterator[Books]:
    async with redis.asyncio.Redis.from_url(own_valkey.url, decode_responses=True) as client:
        yield Books(client)


async def _steadily(count: int) -> AsyncIterator[int]:
    """Numbers, twenty a second."""
    began = time.monotonic()
    for number in range(count):
        await asyncio.sleep(max(0.0, began + number * _EVERY_S - time.monotonic()))
        yield number


@asynccontextmanager
async def _load(publisher: Publisher, runs: Iterator[str]) -> AsyncIterator[None]:
    """Twenty events a second meanwhile, each of another run of `runs`."""

    async def publish() -> None:
        async for _ in _steadily(100_000):
            await publisher.started(next(runs))

    async with _meanwhile(publish()):
        yield


@asynccontextmanager
async def _meanwhile(work: Coroutine[Any, Any, None]) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(work)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait({task})


def _runs(name: str, partition: int | None = None) -> Iterator[str]:
    for number in itertools.count():
        run_id = f"{name}{number}"
        if partition is None or (murmur2(run_id.encode()) & 0x7FFFFFFF) % _PARTITIONS == partition:
            yield run_id


async def _mark_of_the_only_one(publisher: Publisher, books: Books) -> str:
    """The mark of the one relay that runs, once it has read something."""
    await publisher.started("first")
    await eventually_async(lambda: books.known("first"))
    [mark] = await books.reads()
    return mark


async def _reads_in(books: Books, mark: str, seconds: float) -> float:
    """Reads a second of one relay, measured for so long."""
    before, began = (await books.reads())[mark], time.monotonic()
    await asyncio.sleep(seconds)
    return ((await books.reads())[mark] - before) / (time.monotonic() - began)


async def test_sixty_runs_in_three_seconds_share_a_score_of_reads_while_nobody_listens(
    start_relay: StartRelay, publisher: Publisher, books: Books
) -> None:
    start_relay()
    await publisher.started("first")
    await eventually_async(lambda: books.known("first"))
    before, began = await books.read_count(), time.monotonic()
    runs = list(itertools.islice(_runs("r"), 60))
    async for number in _steadily(60):
        await publisher.started(runs[number])

    async def all_known() -> bool:
        return await books.client.zcard(_KEYS.all_runs) == 61

    await eventually_async(all_known)
    reads, took_s = await books.read_count() - before, time.monotonic() - began
    assert reads <= 4 + 4 * took_s + 1, took_s

    for run_id in runs:
        await publisher.completed(run_id)

    async def all_ended() -> bool:
        return await books.client.zcard(_KEYS.facet("status", "completed")) == 60

    # Nothing comes after them that would bring the next read.
    await eventually_async(all_ended, timeout_s=10)
    assert not await books.listened()


async def test_what_has_piled_up_is_read_without_pause_while_nobody_listens(
    start_relay: StartRelay, publisher: Publisher, books: Books
) -> None:
    runs = list(itertools.islice(_runs("r"), 8_000))
    for begin in range(0, len(runs), 1_000):
        await asyncio.gather(*(publisher.started(run_id) for run_id in runs[begin : begin + 1_000]))
    start_relay()
    await eventually_async(books.read_count)
    began = time.monotonic()

    async def all_known() -> bool:
        return await books.client.zcard(_KEYS.all_runs) == len(runs)

    await eventually_async(all_known)
    # By 500 each and four a second they would take three seconds beyond the burst.
    assert time.monotonic() - began < 2.5


async def test_large_events_that_have_piled_up_are_read_without_pause_while_nobody_listens(
    start_relay: StartRelay, publisher: Publisher, books: Books
) -> None:
    for number in range(1, 81):
        await publisher.progressed("large", number, "x" * 250_000)
    start_relay()
    await eventually_async(books.read_count)
    began = time.monotonic()

    async def all_applied() -> bool:
        return await books.client.hget(_KEYS.run("large"), "progress") == "80"

    await eventually_async(all_applied)
    # A fetch brings a megabyte of a partition at most: four a second would take four seconds.
    assert time.monotonic() - began < 3.5


async def test_a_run_at_rest_is_applied_at_once_while_nobody_listens(
    start_relay: StartRelay, publisher: Publisher, books: Books
) -> None:
    start_relay()
    late_s: list[float] = []
    for run_id in itertools.islice(_runs("r"), 5):
        # The burst is whole again.
        await asyncio.sleep(1.0)
        sent_at = time.monotonic()
        await publisher.started(run_id)
        await eventually_async(lambda run_id=run_id: books.known(run_id), every_s=0.005)
        late_s.append(time.monotonic() - sent_at)
    assert statistics.median(late_s) < 0.2, late_s


async def test_who_reads_a_stream_has_each_event_as_soon_as_ever(
    start_relay: StartRelay, publisher: Publisher, books: Books, http: httpx.AsyncClient
) -> None:
    relay = start_relay()
    await publisher.started("told")
    await eventually_async(lambda: books.known("told"))
    sent_at: dict[int, float] = {}
    late_s: list[float] = []

    async def read() -> None:
        async for event in iterate_sse(http, f"{relay.url}/runs/told/stream"):
            if event.event == "end":
                return
            if (number := event.data.get("status")) is not None:
                late_s.append(time.monotonic() - sent_at[number])

    async with _load(publisher, _runs("r")), _meanwhile(read()) as reading:
        await eventually_async(books.listened)
        before, began = await books.read_count(), time.monotonic()
        async for number in _steadily(60):
            sent_at[number] = time.monotonic()
            await publisher.progressed("told", number, number)
        reads, took_s = await books.read_count() - before, time.monotonic() - began
        await publisher.completed("told")
        await asyncio.wait_for(reading, 30)
    assert len(late_s) == 60
    assert statistics.median(late_s) < 0.25, late_s
    assert reads > 1.5 * (4 + 4 * took_s), took_s


async def test_the_relay_that_has_the_partition_is_quick_while_another_is_listened_to(
    start_relay: StartRelay, publisher: Publisher, books: Books, http: httpx.AsyncClient
) -> None:
    listened_to = start_relay()
    its_mark = await _mark_of_the_only_one(publisher, books)
    start_relay()
    tried = _runs("try")

    async def both() -> str | None:
        await publisher.started(next(tried))
        return next(iter(set(await books.reads()) - {its_mark}), None)

    mark = await eventually_async(both, every_s=0.1)

    async def partition_of_the_other() -> int | None:
        for partition in range(_PARTITIONS):
            before = (await books.reads())[mark]
            run_id = next(_runs(f"probe{time.monotonic_ns()}-", partition))
            await publisher.started(run_id)
            await eventually_async(lambda run_id=run_id: books.known(run_id))
            if (await books.reads())[mark] > before:
                return partition
        return None

    found = await partition_of_the_other()
    assert found is not None
    async with _load(publisher, _runs("load", found)):
        # The burst is used up.
        await asyncio.sleep(3)
        assert await _reads_in(books, mark, 2) < 5

        async def read() -> None:
            async for _ in iterate_sse(http, f"{listened_to.url}/events"):
                pass

        async with _meanwhile(read()):
            await eventually_async(books.listened)
            await asyncio.sleep(1)
            assert await _reads_in(books, mark, 2) > 7


async def test_who_asks_for_runs_is_told_what_happens_from_then_on(
    start_relay: StartRelay, publisher: Publisher, books: Books, http: httpx.AsyncClient
) -> None:
    relay = start_relay()
    mark = await _mark_of_the_only_one(publisher, books)
    async with _load(publisher, _runs("load")):
        await asyncio.sleep(3)
        for path in ("/healthz", "/readyz", "/metrics", "/follow", "/docs", "/openapi.json"):
            assert (await http.get(f"{relay.url}{path}")).status_code == 200
        assert await _reads_in(books, mark, 2) < 5
        assert not await books.listened()
        assert (await http.get(f"{relay.url}/runs")).status_code == 200
        assert await _reads_in(books, mark, 2) > 7
        assert await books.listened()
        # It does not outlive a relay that is killed.
        assert 0 < await books.client.pttl(_KEYS.listened) <= 5000
