"""One run's stream over SSE: order, resumption, ends, unknown runs."""

from __future__ import annotations

import asyncio
import json
import random
import re
from typing import Any, cast

import httpx
import redis.asyncio
from tests.integration.relay.conftest import Publisher, StartRelay
from tests.integration.relay.reading import assemble, iterate_sse, read_sse
from tests.integration.relay.valkey import Valkey
from tests.waiting import eventually_async

from towline.contracts.settings import RedisSettings
from towline.contracts.stream import stream_key
from towline.relay.app import build_app
from towline.relay.hub import Hub
from towline.relay.index import RunIndex
from towline.relay.keys import Keys
from towline.relay.principals import NoAuth
from towline.relay.redis_client import connect
from towline.relay.routes import Door
from towline.relay.settings import RelaySettings
from towline.relay.store import RunStore
from towline.worker.streams import TokenWriter


async def test_tokens_and_lifecycle_come_in_one_stream_that_ends(
    start_relay: StartRelay, writer: TokenWriter, publisher: Publisher, http: httpx.AsyncClient
) -> None:
    url = start_relay().url
    reading = asyncio.create_task(read_sse(http, f"{url}/runs/r1/stream"))
    await publisher.started("r1", tags={"team": "a"})
    turn = writer.open("r1", 1, "Poet")
    turn.write("Roses ")
    turn.write("are red")
    turn.finish("Roses are red")
    await publisher.asked("r1", "ok", title="Publish?", details={"text": "Roses are red"})
    await publisher.resolved("r1", "ok")
    await publisher.completed("r1", {"text": "Roses are red"})
    events = await asyncio.wait_for(reading, 20)
    kinds = [event.event for event in events]
    assert kinds[-1] == "end"
    assert [kind for kind in kinds if kind not in ("token", "message")] == [
        "status",
        "approval",
        "approval",
        "end",
    ]
    assert events[-1].data == {"outcome": "completed", "output": {"text": "Roses are red"}}
    approvals = [event.data for event in events if event.event == "approval"]
    assert [approval["phase"] for approval in approvals] == ["requested", "resolved"]
    assert approvals[0]["details"] == {"text": "Roses are red"}
    assembled = assemble((event.event, event.data) for event in events)
    assert assembled.final == {"1": "Roses are red"}
    late = await read_sse(http, f"{url}/runs/r1/stream")
    assert [event.raw for event in late] == [event.raw for event in events]


async def test_a_reader_that_reconnects_at_random_points_sees_what_a_steady_one_saw(
    start_relay: StartRelay, writer: TokenWriter, publisher: Publisher, http: httpx.AsyncClient
) -> None:
    url = f"{start_relay().url}/runs/r1/stream"
    await publisher.started("r1")
    steady = asyncio.create_task(read_sse(http, url))
    chance = random.Random(7)

    async def restless(by_header: bool) -> list[bytes]:
        seen: list[bytes] = []
        cursor: str | None = None
        while True:
            count = chance.randint(1, 5)
            target = url if by_header or cursor is None else f"{url}?cursor={cursor}"
            some = await read_sse(http, target, cursor=cursor if by_header else None, count=count)
            seen += [event.raw for event in some]
            if not some or some[-1].event == "end":
                return seen
            cursor = some[-1].id

    reconnecting = [asyncio.create_task(restless(number % 2 == 0)) for number in range(6)]
    words = [f"word{number} " for number in range(150)]
    turn = writer.open("r1", 1, "Poet")
    for number, word in enumerate(words):
        turn.write(word)
        if number % 50 == 49:
            await publisher.progressed("r1", number, {"words": number})
        await asyncio.sleep(0.01)
    turn.finish("".join(words))
    await publisher.completed("r1", "".join(words))
    expected = [event.raw for event in await asyncio.wait_for(steady, 30)]
    assert len(expected) > 50
    for reader in await asyncio.wait_for(asyncio.gather(*reconnecting), 30):
        assert reader == expected
    assert [event.raw for event in await read_sse(http, url)] == expected


async def test_a_stream_waits_for_a_run_that_is_not_known_yet(
    start_relay: StartRelay, publisher: Publisher, http: httpx.AsyncClient
) -> None:
    url = start_relay(unknown_run_grace_s=20).url
    reading = asyncio.create_task(read_sse(http, f"{url}/runs/later/stream"))
    await asyncio.sleep(0.5)
    assert not reading.done()
    await publisher.started("later")
    await publisher.failed("later")
    events = await asyncio.wait_for(reading, 20)
    assert [event.event for event in events] == ["status", "error"]
    assert events[-1].data == {"error": {"type": "ValueError", "message": "no"}}


async def test_a_run_that_never_comes_is_404_after_the_grace(
    start_relay: StartRelay, http: httpx.AsyncClient
) -> None:
    url = start_relay(unknown_run_grace_s=0.5).url
    answer = await http.get(f"{url}/runs/never/stream")
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"
    assert "never" in answer.json()["detail"]
    assert (await http.get(f"{url}/runs/never/stream?wait=0")).status_code == 404


async def test_the_end_waits_for_tokens_that_are_still_on_their_way(
    start_relay: StartRelay, writer: TokenWriter, publisher: Publisher, http: httpx.AsyncClient
) -> None:
    """The outcome comes by Kafka and may be quicker than the last tokens."""
    url = start_relay(turns_close_s=10).url
    await publisher.started("r1")
    turn = writer.open("r1", 1, "Poet")
    turn.write("half ")
    assert writer.drain(5)
    await publisher.completed("r1", "half and half")
    await asyncio.sleep(0.5)
    turn.write("and half")
    turn.finish("half and half")
    events = await asyncio.wait_for(read_sse(http, f"{url}/runs/r1/stream"), 20)
    assert [event.event for event in events[-2:]] == ["message", "end"]
    assert assemble((event.event, event.data) for event in events).final == {"1": "half and half"}


async def test_a_turn_that_never_ends_does_not_hold_the_end_up_for_ever(
    start_relay: StartRelay, writer: TokenWriter, publisher: Publisher, http: httpx.AsyncClient
) -> None:
    url = start_relay(turns_close_s=0.5).url
    await publisher.started("r1")
    writer.open("r1", 1, "Poet").write("half ")
    assert writer.drain(5)
    await publisher.completed("r1")
    events = await asyncio.wait_for(read_sse(http, f"{url}/runs/r1/stream"), 20)
    # Worker and relay write side by side: which of them is first is nobody's promise.
    kinds = [event.event for event in events]
    assert sorted(kinds[:2]) == ["status", "token"]
    assert kinds[2:] == ["reset", "end"]
    assert assemble((event.event, event.data) for event in events).turns == {}


async def test_a_cursor_that_is_no_entry_gets_reset_and_everything(
    start_relay: StartRelay, publisher: Publisher, http: httpx.AsyncClient
) -> None:
    url = f"{start_relay().url}/runs/r1/stream"
    await publisher.started("r1")
    await publisher.completed("r1")
    everything = await read_sse(http, url)
    events = await read_sse(http, url, cursor="123456789-0")
    assert events[0].event == "reset"
    assert [event.raw for event in events[1:]] == [event.raw for event in everything]
    again = await read_sse(http, url, cursor=events[0].id)
    assert [event.raw for event in again] == [event.raw for event in everything]
    assert await read_sse(http, url, cursor=everything[-1].id) == []
    for wait in ("", "&wait=0"):
        assert (await http.get(f"{url}?cursor={everything[-1].id}{wait}")).status_code == 204
    assert (await http.get(url, headers={"Last-Event-ID": "nonsense"})).status_code == 400


async def test_events_delivered_twice_are_shown_once(
    start_relay: StartRelay, publisher: Publisher, http: httpx.AsyncClient
) -> None:
    url = start_relay().url
    for _ in range(3):
        await publisher.started("r1")
        await publisher.progressed("r1", 1, "busy")
    for _ in range(3):
        await publisher.completed("r1", 1)
    await publisher.failed("r1")
    events = await asyncio.wait_for(read_sse(http, f"{url}/runs/r1/stream"), 20)
    assert [event.event for event in events] == ["status", "status", "end"]


async def test_heartbeats_come_while_nothing_happens(
    start_relay: StartRelay, publisher: Publisher, http: httpx.AsyncClient
) -> None:
    url = start_relay(heartbeat_s=0.2).url
    await publisher.started("r1")

    async def known() -> bool:
        return (await http.get(f"{url}/runs/r1")).status_code == 200

    await eventually_async(known)
    async with http.stream("GET", f"{url}/runs/r1/stream") as response:
        text = ""
        async for chunk in response.aiter_text():
            text += chunk
            if text.count(": heartbeat") >= 3:
                break
    assert "event: status" in text


async def test_three_hundred_readers_get_all_of_it(
    start_relay: StartRelay, writer: TokenWriter, publisher: Publisher, http: httpx.AsyncClient
) -> None:
    relay = start_relay(rate_burst=1000)
    url = f"{relay.url}/runs/r1/stream"
    await publisher.started("r1")
    readers = [asyncio.create_task(read_sse(http, url)) for _ in range(300)]

    async def all_there() -> Any:
        return re.search(
            r"^towline_relay_clients(\{.*\})? 300",
            (await http.get(f"{relay.url}/metrics")).text,
            re.MULTILINE,
        )

    await eventually_async(all_there)
    turn = writer.open("r1", 1, "Poet")
    words = [f"word{number} " for number in range(60)]
    for word in words:
        turn.write(word)
        await asyncio.sleep(0.02)
    turn.finish("".join(words))
    await publisher.completed("r1")
    all_read = await asyncio.wait_for(asyncio.gather(*readers), 60)
    expected = [event.raw for event in all_read[0]]
    assert assemble((event.event, event.data) for event in all_read[0]).final == {"1": "".join(words)}
    assert all([event.raw for event in events] == expected for events in all_read)


async def test_two_replicas_share_the_work_and_serve_every_stream(
    start_relay: StartRelay, publisher: Publisher, http: httpx.AsyncClient
) -> None:
    first, second = start_relay(), start_relay()
    for number in range(12):
        await publisher.started(f"r{number}")
        await publisher.progressed(f"r{number}", 1)
        await publisher.completed(f"r{number}")
    for number in range(12):
        one = await asyncio.wait_for(read_sse(http, f"{first.url}/runs/r{number}/stream"), 20)
        other = await asyncio.wait_for(read_sse(http, f"{second.url}/runs/r{number}/stream"), 20)
        assert [event.event for event in one] == ["status", "status", "end"]
        assert [event.raw for event in one] == [event.raw for event in other]


async def test_a_stopping_relay_sends_its_readers_to_another(
    start_relay: StartRelay, publisher: Publisher, http: httpx.AsyncClient
) -> None:
    first, second = start_relay(), start_relay()
    await publisher.started("r1")
    seen = []
    async for event in iterate_sse(http, f"{first.url}/runs/r1/stream"):
        seen.append(event)
        first.terminate()
    assert first.stop() == 0
    await publisher.completed("r1")
    rest = await asyncio.wait_for(read_sse(http, f"{second.url}/runs/r1/stream", cursor=seen[-1].id), 30)
    assert [event.event for event in (*seen, *rest)] == ["status", "end"]


async def test_a_stopping_relay_does_not_say_that_a_run_is_unknown_or_its_stream_over(
    own_valkey: Valkey,
) -> None:
    """To a browser, 404 and 204 mean not to come back, not even to another relay."""
    client = connect(RedisSettings(url=own_valkey.url))
    settings, keys = RelaySettings(), Keys()
    hub = Hub(client, idle_channel=keys.idle_channel)
    door = Door(
        settings, keys, hub, RunIndex(client, keys), RunStore(client, settings, keys), cast("Any", None)
    )
    app = build_app(
        door,
        settings,
        authenticators=[NoAuth()],
        live=lambda: None,
        ready=lambda: None,
        asked=lambda: None,
    )
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as http:
        waiting = asyncio.create_task(http.get("/runs/r1/stream"))
        await eventually_async(lambda: asyncio.sleep(0, hub.client_count == 1))
        hub.close()
        came_later = await http.get("/runs/r1/stream", headers={"Last-Event-ID": "5-0"})
        for answer in (await waiting, came_later):
            assert (answer.status_code, answer.text) == (200, "retry: 1000\n\n")
    await client.aclose()


async def test_the_stream_is_there_for_agui_front_ends_too(
    start_relay: StartRelay, writer: TokenWriter, publisher: Publisher, http: httpx.AsyncClient
) -> None:
    relay = start_relay()
    url = f"{relay.url}/runs/r1/agui"
    await publisher.started("r1", session_id="s1")
    await read_sse(http, f"{relay.url}/runs/r1/stream", count=1)
    turn = writer.open("r1", 1, "Poet")
    turn.write("Roses")
    turn.finish("Roses")
    await publisher.completed("r1", "Roses")
    answer = await http.get(url)
    events = [json.loads(line[6:]) for line in answer.text.split("\n") if line.startswith("data: ")]
    assert [event["type"] for event in events] == [
        "RUN_STARTED",
        "STATE_SNAPSHOT",
        "TEXT_MESSAGE_START",
        "TEXT_MESSAGE_CONTENT",
        "TEXT_MESSAGE_END",
        "RUN_FINISHED",
    ]
    assert events[0]["threadId"] == "s1"
    # An EventSource that comes back after the end is told to stay away, as of the plain stream.
    last = re.findall(r"^id: (.*)$", answer.text, re.MULTILINE)[-1]
    assert (await http.get(url, headers={"Last-Event-ID": last})).status_code == 204
    # One whose place is gone is told that what it has is void, and then all.
    for gone in ("123456789-0", "99999999999999-0"):
        for wait in ("", "?wait=0"):
            resume = {"Last-Event-ID": gone}
            again = await asyncio.wait_for(http.get(f"{url}{wait}", headers=resume), 10)
            sent = [json.loads(line[6:]) for line in again.text.split("\n") if line.startswith("data: ")]
            snapshot = {"type": "MESSAGES_SNAPSHOT", "messages": []}
            assert sent == [events[0], snapshot, *events[1:]]


async def test_an_agui_thread_is_the_runs_session_whatever_is_left_of_the_stream(
    start_relay: StartRelay, publisher: Publisher, http: httpx.AsyncClient, own_valkey: Valkey
) -> None:
    relay = start_relay()
    await publisher.started("r1", session_id="s1")
    await publisher.progressed("r1", 1, "busy")
    await publisher.completed("r1")
    await read_sse(http, f"{relay.url}/runs/r1/stream")

    async def threads() -> list[str]:
        answer = await http.get(f"{relay.url}/runs/r1/agui")
        sent = [json.loads(line[6:]) for line in answer.text.split("\n") if line.startswith("data: ")]
        return [event["threadId"] for event in sent if "threadId" in event]

    async with redis.asyncio.Redis(port=own_valkey.port) as client:
        await client.xtrim(stream_key("r1"), maxlen=2, approximate=False)
        assert await threads() == ["s1", "s1"]
        await client.delete(stream_key("r1"))
        assert await threads() == ["s1", "s1"]


async def test_a_stream_that_has_expired_after_its_end_still_ends(
    start_relay: StartRelay, publisher: Publisher, http: httpx.AsyncClient, own_valkey: Valkey
) -> None:
    url = f"{start_relay(ended_ttl_s=1).url}/runs"
    await publisher.started("r1")
    await publisher.completed("r1", {"text": "roses"})
    await publisher.started("r2")
    await publisher.failed("r2")
    seen = {run_id: await read_sse(http, f"{url}/{run_id}/stream") for run_id in ("r1", "r2")}

    async with redis.asyncio.Redis(port=own_valkey.port) as client:

        async def expired() -> bool:
            return await client.exists(*(stream_key(run_id) for run_id in seen)) == 0

        await eventually_async(expired)
    for run_id, events in seen.items():
        late = await asyncio.wait_for(read_sse(http, f"{url}/{run_id}/stream"), 10)
        assert [event.raw for event in late] == [events[-1].raw]
        resumed = await asyncio.wait_for(read_sse(http, f"{url}/{run_id}/stream", cursor=events[0].id), 10)
        assert [event.event for event in resumed] == ["reset", events[-1].event]
        assert (
            await asyncio.wait_for(read_sse(http, f"{url}/{run_id}/stream", cursor=events[-1].id), 10) == []
        )
