"""Redis is killed or loses data; readers are slow; workers and relays die in mid-stream."""

from __future__ import annotations

import asyncio
import itertools
import socket
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import redis.asyncio
from aiokafka.partitioner import murmur2
from tests.integration.relay.conftest import Publisher, StartRelay
from tests.integration.relay.reading import Assembled, SseEvent, assemble, iterate_sse, read_sse
from tests.integration.relay.valkey import Valkey
from tests.waiting import eventually_async

from towline.contracts.settings import RedisSettings
from towline.contracts.stream import stream_key
from towline.worker.streams import StreamSettings, TokenWriter


def _of_one_partition() -> Iterator[str]:
    """Run ids of the first of three partitions, which a test's topics have."""
    runs = (f"r{number}" for number in itertools.count())
    return (run for run in runs if (murmur2(run.encode()) & 0x7FFFFFFF) % 3 == 0)


async def follow(http: httpx.AsyncClient, url: str, assembled: Assembled) -> list[SseEvent]:
    """Read to the end, connecting again at the last id whenever the connection breaks."""
    events: list[SseEvent] = []
    cursor: str | None = None
    while True:
        try:
            async for event in iterate_sse(http, url, cursor=cursor):
                events.append(event)
                cursor = event.id
                assembled.take(event.event, event.data)
                if event.event in ("end", "error"):
                    return events
        except httpx.TransportError:
            await asyncio.sleep(0.05)


async def test_redis_killed_in_mid_stream_never_gives_a_reader_wrong_text(
    start_relay: StartRelay,
    own_valkey: Valkey,
    writer: TokenWriter,
    publisher: Publisher,
    http: httpx.AsyncClient,
) -> None:
    url = f"{start_relay().url}/runs/r1/stream"
    await publisher.started("r1")
    assembled = Assembled()
    reading = asyncio.create_task(follow(http, url, assembled))
    turn = writer.open("r1", 1, "Poet")
    words = [f"word{number} " for number in range(200)]
    for number, word in enumerate(words):
        turn.write(word)
        if number in (60, 120):
            own_valkey.kill()
        if number in (80, 140):
            own_valkey.start()
        await asyncio.sleep(0.01)
    turn.finish("".join(words))
    await publisher.completed("r1", "".join(words))
    events = await asyncio.wait_for(reading, 40)
    assert not assembled.wrong
    assert assembled.final == {"1": "".join(words)}
    assert events[-1].event == "end"
    late = await read_sse(http, url)
    assert assemble((event.event, event.data) for event in late).final == {"1": "".join(words)}


async def test_redis_that_lost_its_newest_entries_resets_readers_and_is_mended_from_kafka(
    start_relay: StartRelay,
    own_valkey: Valkey,
    writer: TokenWriter,
    publisher: Publisher,
    http: httpx.AsyncClient,
) -> None:
    url = f"{start_relay().url}/runs/r1/stream"
    await publisher.started("r1")
    turn = writer.open("r1", 1, "Poet")
    turn.write("kept ")
    assert writer.drain(5)
    assembled = Assembled()
    reading = asyncio.create_task(follow(http, url, assembled))

    async def has(text: str) -> bool:
        return assembled.turns.get("1") == text

    await eventually_async(lambda: has("kept "))
    size = own_valkey.append_size()
    turn.write("lost ")
    await publisher.progressed("r1", 1, "lost too")
    await eventually_async(lambda: has("kept lost "))
    await asyncio.sleep(1.2)
    own_valkey.kill()
    own_valkey.lose_tail(size)
    own_valkey.start()
    turn.write("and on")
    turn.finish("kept lost and on")
    assert writer.drain(10)
    await publisher.completed("r1")
    events = await asyncio.wait_for(reading, 40)
    assert "reset" in [event.event for event in events]
    assert not assembled.wrong
    assert assembled.final == {"1": "kept lost and on"}
    late = await read_sse(http, url)
    assert [event.data for event in late if event.event == "status" and "status" in event.data]
    assert late[-1].event == "end"


async def test_an_end_that_redis_lost_while_an_earlier_outcome_still_waits_is_mended_from_kafka(
    start_relay: StartRelay,
    own_valkey: Valkey,
    writer: TokenWriter,
    publisher: Publisher,
    http: httpx.AsyncClient,
) -> None:
    """It is behind no offset yet, so the offsets do not show that it is gone."""
    url = start_relay(turns_close_s=4).url
    waits, ends = itertools.islice(_of_one_partition(), 2)
    await publisher.started(waits)
    writer.open(waits, 1, "Poet").write("half a ")
    assert writer.drain(5)
    await publisher.completed(waits)
    await publisher.started(ends)

    async def listed() -> bool:
        return ends in (await http.get(f"{url}/runs")).text

    await eventually_async(listed)
    async with redis.asyncio.Redis(port=own_valkey.port) as client:
        before = {name: await client.dump(name) for name in await client.keys()}
        await publisher.completed(ends)
        everything = await read_sse(http, f"{url}/runs/{ends}/stream")
        # As a replica that is a little behind and takes over.
        async with client.pipeline(transaction=True) as older:
            older.flushall()
            for name, value in before.items():
                older.restore(name, 0, value)
            await older.execute()
    again = await asyncio.wait_for(read_sse(http, f"{url}/runs/{ends}/stream"), 30)
    assert [event.data for event in again] == [event.data for event in everything]


async def test_a_redis_that_lost_everything_is_filled_again_from_kafka(
    start_relay: StartRelay, own_valkey: Valkey, publisher: Publisher, http: httpx.AsyncClient
) -> None:
    relay = start_relay()
    for number in range(20):
        await publisher.started(f"r{number}", tags={"n": str(number)})
        await publisher.asked(f"r{number}", "ok")
        if number < 10:
            await publisher.completed(f"r{number}", number)
    before = await read_sse(http, f"{relay.url}/runs/r9/stream")

    async def listed() -> tuple[int, int]:
        runs = (await http.get(f"{relay.url}/runs?status=completed&limit=100")).json()["runs"]
        asked = (await http.get(f"{relay.url}/approvals?limit=100")).json()["approvals"]
        return len(runs), len(asked)

    async def complete() -> bool:
        return await listed() == (10, 10)

    await eventually_async(complete)
    async with redis.asyncio.Redis(port=own_valkey.port) as client:
        await client.flushall()
        await client.script_flush()
    await eventually_async(complete)
    after = await read_sse(http, f"{relay.url}/runs/r9/stream")
    assert [(event.event, event.data) for event in after] == [(event.event, event.data) for event in before]
    resumed = await read_sse(http, f"{relay.url}/runs/r9/stream", cursor=before[0].id)
    assert [event.event for event in resumed] == ["reset", *(event.event for event in after)]


async def test_a_redis_that_is_full_for_a_while_misses_nothing(
    start_relay: StartRelay, own_valkey: Valkey, publisher: Publisher, http: httpx.AsyncClient
) -> None:
    relay = start_relay()
    await publisher.started("before")
    await publisher.completed("before")

    async def completed(*expected: str) -> bool:
        runs = (await http.get(f"{relay.url}/runs?status=completed&limit=100")).json()["runs"]
        return sorted(run["run_id"] for run in runs) == list(expected)

    async def says_why() -> bool:
        answer = await http.get(f"{relay.url}/readyz")
        return answer.status_code == 503 and "memory" in answer.text

    await eventually_async(lambda: completed("before"))
    async with redis.asyncio.Redis(port=own_valkey.port) as client:
        await client.config_set("maxmemory", 1)
        for number in range(5):
            await publisher.started(f"r{number}")
            await publisher.asked(f"r{number}", "ok")
            await publisher.completed(f"r{number}", number)
        await eventually_async(says_why)
        assert await completed("before")
        await client.config_set("maxmemory", 0)
    await eventually_async(lambda: completed("before", *(f"r{number}" for number in range(5))))
    events = await read_sse(http, f"{relay.url}/runs/r0/stream")
    assert [event.event for event in events] == ["status", "approval", "end"]
    assert (await http.get(f"{relay.url}/approvals")).json()["approvals"] == []
    assert "redis_lost_data" not in (relay.data / "log").read_text()


async def test_a_redis_without_the_database_of_the_url_is_said_with_the_fix(
    start_relay: StartRelay, own_valkey: Valkey, http: httpx.AsyncClient
) -> None:
    relay = start_relay(ready=False, redis_url=own_valkey.url.removesuffix("0") + "77")

    async def says_why() -> bool:
        if relay.exit_status() is not None:
            raise AssertionError("\n".join(relay.last_lines))
        try:
            answer = await http.get(f"{relay.url}/readyz")
        except httpx.TransportError:
            return False
        return answer.status_code == 503 and "TOWLINE_REDIS_URL" in answer.text and "databases" in answer.text

    await eventually_async(says_why)
    listed = await http.get(f"{relay.url}/runs")
    assert (listed.status_code, listed.json()["type"]) == (503, "urn:towline:problem:redis_away")
    log = (relay.data / "log").read_text()
    assert "Traceback" not in log
    assert relay.stop() == 0


async def test_a_new_relay_with_an_empty_redis_knows_the_past(
    start_relay: StartRelay, own_valkey: Valkey, publisher: Publisher, http: httpx.AsyncClient
) -> None:
    first = start_relay()
    await publisher.started("r1")
    await publisher.completed("r1", "text")
    await read_sse(http, f"{first.url}/runs/r1/stream")
    first.kill()
    async with redis.asyncio.Redis(port=own_valkey.port) as client:
        await client.flushall()
    second = start_relay()
    events = await read_sse(http, f"{second.url}/runs/r1/stream")
    assert [event.event for event in events] == ["status", "end"]


async def test_a_worker_that_dies_in_mid_turn_is_followed_by_reset_and_the_whole_text(
    start_relay: StartRelay,
    own_valkey: Valkey,
    writer: TokenWriter,
    publisher: Publisher,
    http: httpx.AsyncClient,
) -> None:
    url = f"{start_relay().url}/runs/r1/stream"
    await publisher.started("r1")
    assembled = Assembled()
    reading = asyncio.create_task(follow(http, url, assembled))
    dead = TokenWriter(RedisSettings(url=own_valkey.url), StreamSettings())
    dead.start()
    lost = dead.open("r1", 1, "Poet")
    lost.write("from the one that di")
    assert dead.drain(5)
    turn = writer.open("r1", 1, "Poet")
    turn.write("from the ")
    assert writer.drain(5)
    lost.write("es, a zombie now")
    dead.drain(1)
    turn.write("successor")
    turn.finish("from the successor")
    await publisher.completed("r1")
    events = await asyncio.wait_for(reading, 20)
    dead.stop(0.5)
    assert [event.event for event in events if event.event == "reset"] == ["reset"]
    assert assembled.final == {"1": "from the successor"}
    assert not assembled.wrong


async def test_a_relay_killed_in_mid_stream_is_resumed_at_another(
    start_relay: StartRelay, writer: TokenWriter, publisher: Publisher, http: httpx.AsyncClient
) -> None:
    first, second = start_relay(), start_relay()
    await publisher.started("r1")
    turn = writer.open("r1", 1, "Poet")
    turn.write("before ")
    seen: list[SseEvent] = []
    try:
        async for event in iterate_sse(http, f"{first.url}/runs/r1/stream"):
            seen.append(event)
            if event.event == "token":
                first.kill()
    except httpx.TransportError:
        pass
    turn.write("after")
    turn.finish("before after")
    await publisher.completed("r1")
    rest = await asyncio.wait_for(read_sse(http, f"{second.url}/runs/r1/stream", cursor=seen[-1].id), 40)
    everything = await read_sse(http, f"{second.url}/runs/r1/stream")
    assert [event.raw for event in (*seen, *rest)] == [event.raw for event in everything]


async def test_a_reader_that_takes_nothing_is_dropped_and_can_resume(
    start_relay: StartRelay,
    own_valkey: Valkey,
    writer: TokenWriter,
    publisher: Publisher,
    http: httpx.AsyncClient,
) -> None:
    relay = start_relay(send_timeout_s=1)
    await publisher.started("r1")
    host, port = urlsplit(relay.url).hostname, urlsplit(relay.url).port
    slow = socket.socket()
    slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    slow.connect((host, port))
    slow.sendall(b"GET /runs/r1/stream HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    turns = itertools.count()

    async def dropped() -> Any:
        writer.open("r1", next(turns), "Poet").finish("x" * 200_000)
        metrics = (await http.get(f"{relay.url}/metrics")).text
        return any(
            line.startswith("towline_relay_clients_dropped") and not line.endswith(" 0.0")
            for line in metrics.splitlines()
        )

    await eventually_async(dropped)
    slow.settimeout(5)
    taken = b""
    while chunk := await asyncio.to_thread(slow.recv, 65536):
        taken += chunk
    slow.close()
    assert b"event: status" in taken
    await publisher.completed("r1")
    events = await asyncio.wait_for(read_sse(http, f"{relay.url}/runs/r1/stream"), 30)
    assert len(assemble((event.event, event.data) for event in events).final) == next(turns)


async def test_a_reader_that_takes_nothing_of_a_stream_that_is_over_is_dropped_and_a_slow_one_is_not(
    start_relay: StartRelay, publisher: Publisher, http: httpx.AsyncClient
) -> None:
    relay = start_relay(send_timeout_s=1)
    await publisher.started("r1")
    for number in range(12):
        await publisher.progressed("r1", number, "x" * 800_000)
    await publisher.completed("r1")
    await read_sse(http, f"{relay.url}/runs/r1/stream")

    async def opened() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect((urlsplit(relay.url).hostname, urlsplit(relay.url).port))
        connection.sendall(b"GET /runs/r1/stream HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        return await asyncio.open_connection(sock=connection)

    async def dropped() -> bool:
        metrics = (await http.get(f"{relay.url}/metrics")).text
        return any(
            line.startswith("towline_relay_clients_dropped") and line.endswith(" 1.0")
            for line in metrics.splitlines()
        )

    slow, slow_writer = await opened()
    began, taken = time.monotonic(), b""
    while b"event: end" not in taken[-1000:]:
        part = await asyncio.wait_for(slow.read(65_536), 10)
        assert part, "cut off while it was reading"
        taken += part
        await asyncio.sleep(0.02)  # as a thin line would
    assert time.monotonic() - began > 2
    assert not await dropped()
    slow_writer.close()

    idle, idle_writer = await opened()
    await eventually_async(dropped)
    # It has what the kernel had: the relay did not go on keeping the rest for it.
    assert len(await asyncio.wait_for(idle.read(), 10)) < len(taken) - 1_000_000
    idle_writer.close()


async def test_a_reader_that_was_away_while_the_stream_was_trimmed_is_reset(
    start_relay: StartRelay, own_valkey: Valkey, publisher: Publisher, http: httpx.AsyncClient
) -> None:
    relay = start_relay()
    await publisher.started("r1")
    [first] = await read_sse(http, f"{relay.url}/runs/r1/stream", count=1)
    small = TokenWriter(RedisSettings(url=own_valkey.url), StreamSettings(entries_max=100))
    small.start()
    for number in range(400):
        small.open("r1", number, "Poet").finish(f"text {number}")
    assert small.drain(5)
    small.stop(1)
    await publisher.completed("r1")
    events = await asyncio.wait_for(read_sse(http, f"{relay.url}/runs/r1/stream", cursor=first.id), 20)
    assert events[0].event == "reset"
    assembled = assemble((event.event, event.data) for event in events)
    assert assembled.final["399"] == "text 399"


async def test_a_stream_with_a_foreign_value_under_its_key_harms_nobody_else(
    start_relay: StartRelay, own_valkey: Valkey, publisher: Publisher, http: httpx.AsyncClient
) -> None:
    relay = start_relay()
    async with redis.asyncio.Redis(port=own_valkey.port) as client:
        await client.set(stream_key("spoiled"), "not a stream")
    await publisher.started("spoiled")
    await publisher.completed("spoiled")
    began = time.monotonic()
    await publisher.started("r1")
    await publisher.completed("r1")
    events = await asyncio.wait_for(read_sse(http, f"{relay.url}/runs/r1/stream"), 20)
    assert [event.event for event in events] == ["status", "end"]
    assert time.monotonic() - began < 10
