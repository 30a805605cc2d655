"""Commands in, lookups out, and who may do what."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from aiokafka import AIOKafkaConsumer
from redis.asyncio import Redis
from tests.integration.relay.conftest import Publisher, StartRelay
from tests.integration.relay.reading import iterate_sse, read_sse
from tests.integration.relay.valkey import Valkey
from tests.waiting import eventually_async

from towline.contracts.cloudevents import decode
from towline.contracts.events import Event
from towline.contracts.settings import KafkaSettings, RedisSettings
from towline.dev.roles import ProcessPart
from towline.relay.auth.keys import new_key
from towline.worker.streams import StreamSettings, TokenWriter


class Commands:
    """Reads what the relay published."""

    def __init__(self, consumer: Any) -> None:
        self._consumer = consumer

    async def next(self) -> Event[Any]:
        record = await asyncio.wait_for(self._consumer.getone(), 15)
        return decode(key=record.key, value=record.value, headers=record.headers)


@pytest.fixture
async def commands(kafka_settings: KafkaSettings) -> AsyncIterator[Commands]:
    topics = kafka_settings.topics
    consumer = AIOKafkaConsumer(
        topics.runs, topics.approvals, **kafka_settings.connection(), auto_offset_reset="earliest"
    )
    await consumer.start()
    yield Commands(consumer)
    await consumer.stop()


async def known(http: httpx.AsyncClient, url: str, run_id: str, status: str) -> dict[str, Any]:
    async def condition() -> Any:
        answer = await http.get(f"{url}/runs/{run_id}")
        return answer.json() if answer.status_code == 200 and answer.json()["status"] == status else None

    return await eventually_async(condition)


async def test_a_posted_run_is_published_and_known_at_once(
    start_relay: StartRelay, commands: Commands, http: httpx.AsyncClient
) -> None:
    url = start_relay().url
    answer = await http.post(
        f"{url}/runs", json={"run_id": "r1", "run_type": "chat", "input": {"a": 1}, "tags": {"team": "x"}}
    )
    assert answer.status_code == 202
    assert answer.json()["links"]["stream"] == "/runs/r1/stream"
    assert answer.headers["location"] == "/runs/r1"
    event = await commands.next()
    assert event.type == "towline.run.requested.v1"
    assert (event.data.run_id, event.data.input) == ("r1", {"a": 1})
    run = (await http.get(f"{url}/runs/r1")).json()
    assert (run["status"], run["run_type"], run["tags"]) == ("pending", "chat", {"team": "x"})


async def test_an_idempotency_key_names_one_run(
    start_relay: StartRelay, commands: Commands, http: httpx.AsyncClient
) -> None:
    url = start_relay().url
    headers = {"Idempotency-Key": "order-17"}
    answers = [await http.post(f"{url}/runs", json={"run_type": "chat"}, headers=headers) for _ in range(2)]
    assert answers[0].json() == answers[1].json()
    first, second = await commands.next(), await commands.next()
    assert first.id == second.id
    assert first.data == second.data
    other = await http.post(f"{url}/runs", json={"run_type": "chat", "input": 1}, headers=headers)
    assert other.status_code == 422
    assert "Idempotency-Key" in other.json()["detail"]
    cancels = [await http.post(f"{url}/runs/r1/cancel", headers=headers) for _ in range(2)]
    assert [answer.status_code for answer in cancels] == [202, 202]
    assert len({answer.json()["event_id"] for answer in (answers[0], *cancels)}) == 2
    changed = await http.post(f"{url}/runs/r1/cancel", json={"reason": "other"}, headers=headers)
    assert changed.status_code == 422


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        (b"{", 400, "body"),
        (b"[1]", 400, "body"),
        (b"{}", 422, "run_type"),
        (b'{"run_type": 7}', 422, "run_type"),
        (b'{"run_type": "chat", "run_id": "a b"}', 422, "run_id"),
        (b'{"run_type": "chat", "tags": {"a": 1}}', 422, "tags.a"),
        (b'{"run_type": "chat", "start_at": "tomorrow"}', 422, "start_at"),
        (b'{"run_type": "chat", "input": "' + b"x" * 1_100_000 + b'"}', 413, "body"),
    ],
)
async def test_a_bad_request_is_told_which_field(
    quiet_relay: ProcessPart, http: httpx.AsyncClient, body: bytes, status: int, field: str
) -> None:
    answer = await http.post(f"{quiet_relay.url}/runs", content=body)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert field in problem["detail"]
    if status == 422:
        assert field in [error["field"] for error in problem["errors"]]


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/runs/r1/stream?cursor=18446744073709551616-0", {}, 400),
        ("/runs/r1/stream?cursor=\u0661-\u0661", {}, 400),
        ("/events", {"Last-Event-ID": "99999999999999999999-0"}, 400),
        *(
            (f"/runs?cursor={base64.urlsafe_b64encode(cursor).decode().rstrip('=')}", {}, 400)
            for cursor in (b'["r1", NaN]', b'["\\ud800", 1]', b"[" * 2_000, b'["r1", 1e999]', b"7", b"[1]")
        ),
        (f"/runs?limit={'1' * 5_000}", {}, 422),
        ("/runs", {"Host": "[x"}, 403),
    ],
)
async def test_nonsense_in_the_address_is_the_callers_mistake(
    quiet_relay: ProcessPart, http: httpx.AsyncClient, path: str, headers: dict[str, str], status: int
) -> None:
    assert (await http.get(f"{quiet_relay.url}{path}", headers=headers)).status_code == status


async def test_decisions_and_controls_are_published(
    start_relay: StartRelay, commands: Commands, http: httpx.AsyncClient
) -> None:
    url = start_relay().url
    body = {"approved": True, "feedback": "fine", "approver": "mallory", "digest": "d"}
    assert (await http.post(f"{url}/runs/r1/approvals/a%2F1", json=body)).status_code == 202
    decided = (await commands.next()).data
    assert (decided.approval_id, decided.approved, decided.feedback, decided.digest) == (
        "a/1",
        True,
        "fine",
        "d",
    )
    assert decided.approver is None
    for action in ("cancel", "suspend", "resume"):
        assert (await http.post(f"{url}/runs/r1/{action}", json={"reason": "so"})).status_code == 202
        control = (await commands.next()).data
        assert (control.action, control.reason) == (action, "so")
    assert (await http.post(f"{url}/runs/r1/cancel")).status_code == 202
    assert (await commands.next()).data.reason is None
    assert (await http.post(f"{url}/runs/r1/events/Ping", json={"data": [1]})).status_code == 202
    raised = (await commands.next()).data
    assert (raised.name, raised.data) == ("Ping", [1])
    for path in ("approvals/a%0A", "approvals/a%0Ab", "events/a%0Ab"):
        assert (await http.post(f"{url}/runs/r1/{path}", json=body)).status_code == 422, "no other name"
    missing = await http.post(f"{url}/runs/r1/approvals/a", json={})
    assert missing.status_code == 422
    assert "approved" in missing.json()["detail"]


async def test_runs_and_approvals_are_listed_page_by_page(
    start_relay: StartRelay, publisher: Publisher, http: httpx.AsyncClient
) -> None:
    url = start_relay().url
    for number in range(25):
        team = "a" if number % 2 else "b"
        await publisher.started(f"r{number}", "chat" if number < 20 else "other", tags={"team": team})
        await publisher.asked(f"r{number}", "ok", title=f"Title {number}")
    for number in range(5):
        await publisher.resolved(f"r{number}", "ok")
        await publisher.completed(f"r{number}", number)
    await known(http, url, "r4", "completed")

    async def listed(what: str, **params: Any) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        cursor = None
        while True:
            page = {**params, "limit": 4, **({"cursor": cursor} if cursor else {})}
            answer = (await http.get(f"{url}/{what}", params=page)).json()
            assert len(answer[what]) <= 4
            found += answer[what]
            cursor = answer["next_cursor"]
            if cursor is None:
                return found

    assert [run["run_id"] for run in await listed("runs")] == [f"r{number}" for number in reversed(range(25))]
    assert {run["run_id"] for run in await listed("runs", status="completed")} == {f"r{n}" for n in range(5)}
    assert len(await listed("runs", run_type="other")) == 5
    assert len(await listed("runs", status="running", run_type="chat", tag="team=a")) == 8
    asked = await listed("approvals")
    assert [ask["run_id"] for ask in asked] == [f"r{number}" for number in reversed(range(5, 25))]
    assert asked[0]["title"] == "Title 24"
    assert len(await listed("approvals", run_type="other", tag="team=b")) == 3
    run = (await http.get(f"{url}/runs/r1")).json()
    assert run["output"] == 1
    assert run["approvals"][0]["status"] == "resolved"
    assert run["approvals"][0]["approver"] == "ann"
    for bad in ("limit=0", "limit=x", "status=odd", "tag=a", "cursor=zzz"):
        assert (await http.get(f"{url}/runs?{bad}")).status_code in (400, 422), bad
    assert (await http.get(f"{url}/runs/nobody")).status_code == 404


async def test_stacks_with_prefixes_of_their_own_share_one_redis(
    start_relay: StartRelay, own_valkey: Valkey, publisher: Publisher, http: httpx.AsyncClient
) -> None:
    relay = start_relay(redis_key_prefix="blue:")
    await publisher.started("r1")
    await known(http, relay.url, "r1", "running")
    writer = TokenWriter(RedisSettings(url=own_valkey.url, key_prefix="blue:"), StreamSettings())
    writer.start()
    writer.open("r1", 1, "Poet").write("roses")
    stream = iterate_sse(http, f"{relay.url}/runs/r1/stream")
    assert [(await asyncio.wait_for(anext(stream), 15)).event for _ in range(2)] == ["status", "token"]
    writer.stop(1)
    async with Redis.from_url(own_valkey.url, decode_responses=True) as client:
        assert {key.partition("{")[0] for key in await client.keys("*")} == {"blue:"}


async def test_all_runs_in_one_stream_with_filters(
    start_relay: StartRelay, publisher: Publisher, http: httpx.AsyncClient
) -> None:
    url = start_relay().url
    await publisher.started("r0", "chat")
    await known(http, url, "r0", "running")
    everything = iterate_sse(http, f"{url}/events?cursor=0-0")
    narrow = iterate_sse(http, f"{url}/events?cursor=0-0&run_type=other&tag=team=a")
    results = iterate_sse(http, f"{url}/events?type=towline.run.completed.v1")
    reading_results = asyncio.ensure_future(anext(results))
    assert (await asyncio.wait_for(anext(everything), 15)).data["run_id"] == "r0"
    await publisher.started("r1", "other", tags={"team": "b"})
    await publisher.started("r2", "other", tags={"team": "a"})
    await publisher.progressed("r2", 1, "busy")
    await publisher.completed("r2", run_type="other")
    seen = [await asyncio.wait_for(anext(everything), 15) for _ in range(4)]
    assert {event.data["run_id"] for event in seen} == {"r1", "r2"}
    wanted = [await asyncio.wait_for(anext(narrow), 15) for _ in range(3)]
    assert [event.event for event in wanted] == [
        "towline.run.started.v1",
        "towline.run.progressed.v1",
        "towline.run.completed.v1",
    ]
    assert {event.data["run_id"] for event in wanted} == {"r2"}
    assert (await asyncio.wait_for(reading_results, 15)).data["run_id"] == "r2"
    again = iterate_sse(http, f"{url}/events", cursor=seen[0].id)
    assert [(await asyncio.wait_for(anext(again), 15)).raw for _ in range(3)] == [e.raw for e in seen[1:]]
    for stream in (everything, narrow, results, again):
        await stream.aclose()


async def test_a_stream_is_asked_for_its_head_alone_and_the_connection_is_free_again(
    start_relay: StartRelay, publisher: Publisher, http: httpx.AsyncClient
) -> None:
    relay = start_relay()
    await publisher.started("r1")
    await read_sse(http, f"{relay.url}/runs/r1/stream", count=1)
    async with httpx.AsyncClient(limits=httpx.Limits(max_connections=1), timeout=10) as one:
        for path in ("/runs/r1/stream", "/runs/r1/agui", "/events"):
            head = await one.head(f"{relay.url}{path}")
            assert (head.status_code, head.content) == (200, b"")
            assert head.headers["content-type"].startswith("text/event-stream")
            assert (await one.get(f"{relay.url}/runs/r1")).status_code == 200

    async def nobody_is_left() -> bool:
        lines = (await http.get(f"{relay.url}/metrics")).text.splitlines()
        return any(line.startswith("towline_relay_clients{") and line.endswith(" 0.0") for line in lines)

    await eventually_async(nobody_is_left)


async def test_a_caller_that_leaves_in_the_middle_of_a_body_is_no_error_of_the_relays(
    start_relay: StartRelay, http: httpx.AsyncClient
) -> None:
    relay = start_relay()
    address = urlsplit(relay.url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    writer.write(
        b"POST /runs HTTP/1.1\r\nHost: 127.0.0.1\r\nExpect: 100-continue\r\nContent-Length: 9\r\n\r\n{"
    )
    await reader.readuntil(b"100 Continue\r\n\r\n")
    writer.close()
    await writer.wait_closed()
    # It was served after the one that left.
    assert (await http.post(f"{relay.url}/runs", json={"run_type": "chat"})).status_code == 202
    relay.stop()
    assert "Traceback" not in (relay.data / "log").read_text()


async def test_keys_give_roles_and_the_approver(
    start_relay: StartRelay, commands: Commands, http: httpx.AsyncClient, tmp_path: Path
) -> None:
    reader, reader_line = new_key("rita", ["read"])
    approver, approver_line = new_key("ann", ["read", "approve"])
    keys = tmp_path / "keys"
    keys.write_text(f"# keys\n{reader_line}\n{approver_line}\n")
    url = start_relay(auth="keys", api_keys_file=keys).url
    decision = {"approved": True, "approver": "mallory"}
    where = f"{url}/runs/r1/approvals/ok"
    assert (await http.post(where, json=decision)).status_code == 401
    wrong = {"Authorization": "Bearer tlk_wrong"}
    assert (await http.post(where, json=decision, headers=wrong)).status_code == 401
    refused = await http.post(where, json=decision, headers={"Authorization": f"Bearer {reader}"})
    assert refused.status_code == 403
    assert "approve" in refused.json()["detail"]
    assert (await http.post(where, json=decision, headers={"X-API-Key": approver})).status_code == 202
    assert (await commands.next()).data.approver == "ann"
    start = await http.post(f"{url}/runs", json={"run_type": "x"}, headers={"X-API-Key": approver})
    assert start.status_code == 403
    assert (await http.get(f"{url}/runs", headers={"X-API-Key": reader})).status_code == 200
    assert (await http.get(f"{url}/runs/r1/stream")).status_code == 401
    assert (await http.get(f"{url}/healthz")).status_code == 200


async def test_other_sites_cannot_send_commands_to_an_open_relay(
    quiet_relay: ProcessPart, http: httpx.AsyncClient
) -> None:
    url = quiet_relay.url
    foreign = await http.post(
        f"{url}/runs", json={"run_type": "x"}, headers={"Origin": "https://evil.example"}
    )
    assert (foreign.status_code, foreign.json()["type"]) == (403, "urn:towline:problem:cross_origin")
    rebound = await http.get(f"{url}/runs", headers={"Host": "evil.example"})
    assert (rebound.status_code, rebound.json()["type"]) == (403, "urn:towline:problem:wrong_host")
    answer = await http.get(f"{url}/runs", headers={"Origin": "https://evil.example"})
    assert "access-control-allow-origin" not in answer.headers
    assert "default-src 'none'" in answer.headers["content-security-policy"]


async def test_pages_of_named_origins_may_call_and_no_others(
    start_relay: StartRelay, commands: Commands, http: httpx.AsyncClient
) -> None:
    url = start_relay(cors_origins="https://desk.example, https://other.example").url
    wanted = {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type,idempotency-key,x-api-key",
    }
    allowed, allow = {}, "access-control-allow-origin"
    for origin in ("https://desk.example", "https://evil.example"):
        asked = await http.request("OPTIONS", f"{url}/runs", headers={"Origin": origin, **wanted})
        sent = await http.post(f"{url}/runs", json={"run_type": "x"}, headers={"Origin": origin})
        read = await http.get(f"{url}/runs", headers={"Origin": origin})
        statuses = (asked.status_code, sent.status_code, read.status_code)
        allowed[origin] = statuses, {answer.headers.get(allow) for answer in (asked, sent, read)}
    assert allowed == {
        "https://desk.example": ((200, 202, 200), {"https://desk.example"}),
        "https://evil.example": ((400, 403, 200), {None}),
    }
    assert (await commands.next()).data.run_type == "x"


async def test_callers_are_limited(start_relay: StartRelay, http: httpx.AsyncClient) -> None:
    url = start_relay(rate_per_s=1, rate_burst=3).url
    statuses = [(await http.get(f"{url}/runs")).status_code for _ in range(5)]
    assert statuses[:3] == [200, 200, 200]
    assert 429 in statuses[3:]


async def test_kafka_away_is_a_503_and_redis_away_too(
    start_relay: StartRelay, own_valkey: Valkey, http: httpx.AsyncClient
) -> None:
    url = start_relay().url
    own_valkey.kill()
    answer = await http.get(f"{url}/runs/r1")
    assert (answer.status_code, answer.json()["type"]) == (503, "urn:towline:problem:redis_away")
    assert (await http.post(f"{url}/runs", json={"run_type": "x"})).status_code == 202

    async def unready() -> bool:
        return (await http.get(f"{url}/readyz")).status_code == 503

    await eventually_async(unready)
    own_valkey.start()

    async def ready() -> bool:
        return (await http.get(f"{url}/readyz")).status_code == 200

    await eventually_async(ready)


async def test_the_api_describes_itself(quiet_relay: ProcessPart, http: httpx.AsyncClient) -> None:
    url = quiet_relay.url
    document = (await http.get(f"{url}/openapi.json")).json()
    assert document["openapi"].startswith("3.1")
    for path in ("/runs", "/runs/{run_id}/stream", "/runs/{run_id}/approvals/{approval_id}", "/events"):
        assert path in document["paths"]
    assert json.dumps(document).count("ApprovalDecided")
    page = await http.get(f"{url}/docs")
    assert page.status_code == 200
    assert "/runs/{run_id}/stream" in page.text
    assert "towline_relay_clients" in (await http.get(f"{url}/metrics")).text
