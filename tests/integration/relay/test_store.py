"""What the relay writes to Redis and looks up there, without Kafka."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest
from redis import ResponseError
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import MovedError
from tests.integration.relay.valkey import Valkey, free_port
from tests.waiting import eventually_async

from towline.contracts import ids
from towline.contracts.events import (
    ApprovalRefused,
    ApprovalRequested,
    ApprovalResolved,
    ControlRefused,
    ErrorInfo,
    Event,
    EventData,
    RunFailed,
    RunProgressed,
    RunStarted,
)
from towline.contracts.settings import RedisSettings
from towline.relay.errors import RedisAwayError
from towline.relay.feed import Source
from towline.relay.hub import Hub
from towline.relay.index import RunFilter, RunIndex
from towline.relay.keys import Keys
from towline.relay.projection import Change, project
from towline.relay.redis_client import Script, connect
from towline.relay.settings import RelaySettings
from towline.relay.store import Applied, Mode, RunStore, Step

NOW = datetime(2026, 11, 30, tzinfo=UTC)


@dataclass
class Books:
    redis: Redis
    store: RunStore
    index: RunIndex
    keys: Keys
    offset: int = 0

    async def take(self, event_id: str, data: EventData, *, time: datetime = NOW) -> None:
        change = project(Event(id=event_id, source="test", data=data, time=time), recorded_ms=0)
        assert change is not None
        mode: Mode = "end" if change.ends else "more"
        [applied] = await self.store.apply([(change, mode)])
        self.offset += 1
        step = Step("events:0", self.offset, change, applied)
        await self.store.advance([step], known={}, changed=[step])

    async def started(self, run_id: str, *, time: datetime = NOW, **tags: str) -> None:
        await self.take(
            ids.started_id(run_id), RunStarted(run_id=run_id, run_type="chat", tags=tags or None), time=time
        )

    async def expire(self, run_id: str) -> None:
        """As Redis does, long after the run's last write."""
        await self.redis.delete(self.keys.run(run_id), self.keys.approvals(run_id))

    async def failed(self, run_id: str) -> None:
        error = ErrorInfo(type="ValueError", message="no")
        outcome = RunFailed(run_id=run_id, run_type="chat", error=error, finished_at=NOW)
        await self.take(ids.outcome_id(run_id), outcome)


@pytest.fixture
async def books(own_valkey: Valkey) -> AsyncIterator[Books]:
    client, keys, settings = connect(RedisSettings(url=own_valkey.url)), Keys(), RelaySettings()
    yield Books(client, RunStore(client, settings, keys), RunIndex(client, keys), keys)
    await client.aclose()


async def test_asks_that_a_run_left_open_at_its_end_are_counted_no_more(books: Books) -> None:
    await books.started("r1")
    await books.take(ids.approval_requested_id("r1", "ok"), ApprovalRequested(run_id="r1", approval_id="ok"))
    assert (await books.index.approvals_waiting())[0] == 1
    await books.failed("r1")
    assert await books.index.approvals_waiting() == (0, None)


async def test_a_run_whose_beginning_comes_after_its_end_has_its_tags_all_the_same(books: Books) -> None:
    """Both may be on their way at once, and Kafka have trouble with the partition of one of them."""
    await books.failed("r1")
    await books.started("r1", order="7")
    (listed,), _ = await books.index.runs(RunFilter(tags=("order=7",)), limit=10, cursor=None)
    assert (listed["status"], listed["tags"]) == ("failed", {"order": "7"})
    [*_, last] = await books.redis.xrange(books.keys.stream("r1"))
    assert last[1]["type"] == "error", "its stream stays over"


async def test_a_page_leaves_out_nothing_when_the_last_run_before_it_has_left_the_list(books: Books) -> None:
    for number in range(9):
        await books.started(f"r{number}")  # all in one millisecond
    wanted = RunFilter(status="running")
    page, cursor = await books.index.runs(wanted, limit=3, cursor=None)
    await books.failed(page[-1]["run_id"])
    rest, _ = await books.index.runs(wanted, limit=10, cursor=cursor)
    assert [run["run_id"] for run in (*page, *rest)] == [f"r{number}" for number in reversed(range(9))]


async def test_nothing_is_kept_of_tags_that_only_old_runs_had(books: Books) -> None:
    for number in range(1_200):
        await books.started(f"old{number}", order=str(number), time=NOW - timedelta(days=8))
        await books.expire(f"old{number}")
    await books.started("new", order="now")
    await books.store.prune(before_ms=int((NOW - timedelta(days=7)).timestamp() * 1000))
    kept = await books.redis.smembers(books.keys.facets)
    assert kept == {
        books.keys.facet("status", "running"),
        books.keys.facet("type", "chat"),
        books.keys.facet("tag", "order=now"),
    }
    runs, _ = await books.index.runs(RunFilter(), limit=10, cursor=None)
    assert [run["run_id"] for run in runs] == ["new"]


async def test_a_run_that_began_long_ago_is_listed_and_so_is_its_ask_while_anything_is_known_of_it(
    books: Books,
) -> None:
    long_ago = NOW - timedelta(days=8)
    for run_id in ("gone", "waits", *(f"goes{number}" for number in range(600))):  # of one millisecond
        await books.started(run_id, time=long_ago, order=run_id)
    for run_id in ("gone", "waits"):
        asked = ApprovalRequested(run_id=run_id, approval_id="ok")
        await books.take(ids.approval_requested_id(run_id, "ok"), asked, time=long_ago)
    await books.take(ids.progress_id("waits", 1), RunProgressed(run_id="waits", status="reminded"))
    await books.expire("gone")
    await books.store.prune(before_ms=int((NOW - timedelta(days=7)).timestamp() * 1000))

    runs, _ = await books.index.runs(RunFilter(status="running"), limit=1_000, cursor=None)
    assert {run["run_id"] for run in runs} == {"waits", *(f"goes{number}" for number in range(600))}
    assert await books.index.runs(RunFilter(tags=("order=gone",)), limit=1, cursor=None) == ([], None)
    asks, _ = await books.index.open_approvals(RunFilter(), limit=10, cursor=None)
    assert [ask["run_id"] for ask in asks] == ["waits"]
    assert (await books.index.approvals_waiting())[0] == 1


async def test_a_run_whose_events_overtake_its_request_is_not_listed_as_pending(
    books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = Script.call

    async def call_late(script: Script, client: Redis, keys: list[str], arguments: list[Any]) -> Any:
        answer = await call(script, client, keys, arguments)
        if keys == [books.keys.run("r1")]:
            # The request is known, and not in the index yet.
            monkeypatch.undo()
            await books.started("r1")
            await books.failed("r1")
        return answer

    monkeypatch.setattr(Script, "call", call_late)
    await books.store.note_requested("r1", {"run_id": "r1", "run_type": "chat"}, now=NOW)
    for status in ("pending", "failed"):
        runs, _ = await books.index.runs(RunFilter(status=status), limit=10, cursor=None)
        assert [run["run_id"] for run in runs] == (["r1"] if status == "failed" else [])


async def test_a_run_that_tells_its_progress_for_ever_costs_no_more_memory_and_repeats_are_still_known(
    books: Books,
) -> None:
    await books.started("r1")
    for number in [*range(0, 300, 3), *range(150, 330, 3), 3]:
        await books.take(ids.progress_id("r1", number), RunProgressed(run_id="r1", status=number))
    # Not one of the worker's, whatever it looks like.
    for _ in range(2):
        await books.take("r1/progress/0005", RunProgressed(run_id="r1", status="other"))
        await books.take("r1/progress/" + "9" * 5_000, RunProgressed(run_id="r1", status="odd"))
    entries = cast("list[Any]", await books.redis.xrange(books.keys.stream("r1")))
    told = [json.loads(fields["data"]).get("status") for _, fields in entries]
    assert told == [None, *range(0, 330, 3), "other", "odd"]
    assert await books.redis.scard(books.keys.written("r1")) == 3


async def test_what_a_relay_writes_late_that_has_lost_its_partition_does_not_stay_in_the_lists(
    books: Books,
) -> None:
    def change(event_id: str, data: EventData) -> Change:
        made = project(Event(id=event_id, source="test", data=data, time=NOW), recorded_ms=0)
        assert made is not None
        return made

    started = change(ids.started_id("r1"), RunStarted(run_id="r1", run_type="chat"))
    asked = change("r1/asked", ApprovalRequested(run_id="r1", approval_id="ok"))
    answered = change("r1/answered", ApprovalResolved(run_id="r1", approval_id="ok", outcome="approved"))
    error = ErrorInfo(type="ValueError", message="no")
    ended = change(
        ids.outcome_id("r1"), RunFailed(run_id="r1", run_type="chat", error=error, finished_at=NOW)
    )
    changes: list[tuple[Change, Mode]] = [
        (started, "more"),
        (asked, "more"),
        (answered, "more"),
        (ended, "end"),
    ]
    known = {"events:0": 0}

    async def steps(store: RunStore, count: int) -> list[Step]:
        applied = await store.apply(changes[:count])
        return [
            Step("events:0", offset, change, result)
            for offset, ((change, _), result) in enumerate(zip(changes[:count], applied, strict=True))
        ]

    late = await steps(books.store, 2)
    other = RunStore(books.redis, RelaySettings(), books.keys)
    whole = await steps(other, 4)
    await other.advance(whole, known=known, changed=whole)
    await books.store.advance(late, known=known, changed=late)
    for status, listed in (("running", []), ("failed", ["r1"])):
        runs, _ = await books.index.runs(RunFilter(status=status), limit=10, cursor=None)
        assert [run["run_id"] for run in runs] == listed
    assert await books.index.approvals_waiting() == (0, None)
    assert await books.store.offsets() == {"events:0": 4}


async def test_a_refused_command_makes_no_run_known_and_is_seen_by_those_of_a_known_one(books: Books) -> None:
    async def refused(run_id: str) -> None:
        control = ControlRefused(run_id=run_id, action="cancel", reason="unknown_run")
        await books.take(f"{run_id}/control/cancel/refused/c1", control)
        approval = ApprovalRefused(run_id=run_id, approval_id="ok", reason="unknown_run")
        await books.take(f"{run_id}/approval/ok/refused/c2", approval)

    await refused("never-was")
    assert not await books.index.known("never-was")
    assert await books.index.runs(RunFilter(), limit=10, cursor=None) == ([], None)
    assert await books.redis.xlen(books.keys.events) == 2
    await books.started("r1")
    await refused("r1")
    await refused("r1")
    assert await books.redis.xlen(books.keys.stream("r1")) == 3


@pytest.mark.parametrize("count", [1, 10, 28, 29, 500, 501, 502, 1_200])
@pytest.mark.parametrize("resumed", [False, True])
async def test_pages_of_a_stream_are_small_in_bytes_and_leave_nothing_out(
    books: Books, count: int, resumed: bool
) -> None:
    hub = Hub(books.redis, idle_channel=books.keys.idle_channel)
    # Small ones, then outputs as large as an event may be, as a night's batch writes them.
    large = range(count // 2, count // 2 + 10)
    pipeline = cast("Any", books.redis).pipeline(transaction=False)
    for number in range(count):
        data = "x" * (800_000 if number in large else 10)
        pipeline.xadd(books.keys.events, {"type": "any", "data": data}, id=f"{number + 1}-0")
    await pipeline.execute()

    def encode(entry_id: str, fields: dict[str, str]) -> bytes:
        return f"{entry_id} {fields['data']}\n".encode()

    source = Source(books.keys.events, books.keys.events_channel, encode)
    client = hub.client(source, "1-0" if resumed else "0-0")
    seen: list[str] = []
    while client.feed is None:
        piece = await client.next_within(0.2)
        if piece is not None:
            assert len(piece.body) < 2_000_000
            seen += [line.split()[0] for line in piece.body.decode().splitlines()]
    assert seen == [f"{number}-0" for number in range(2 if resumed else 1, count + 1)]


_TROUBLES = {
    "busy": ["CONFIG SET busy-reply-threshold 1"],
    "few_replicas": ["CONFIG SET min-replicas-to-write 1"],
    "no_memory": ["CONFIG SET maxmemory 1"],
    "no_rights": ["ACL SETUSER default -evalsha -@read"],
    "no_rights_in_scripts": ["ACL SETUSER default -@hash -zadd"],
    "primary_away": ["CONFIG SET replica-serve-stale-data no", "REPLICAOF 127.0.0.1 1"],
}


@pytest.mark.parametrize("trouble", _TROUBLES)
async def test_what_redis_does_not_take_now_is_to_be_asked_again_and_no_event_is_refused(
    books: Books, own_valkey: Valkey, trouble: str
) -> None:
    """A refused event is passed over, and any other error ends the process."""
    await books.started("r1")
    others = cast("Any", Redis(port=own_valkey.port, retry=Retry(NoBackoff(), 0)))
    for command in _TROUBLES[trouble]:
        await others.execute_command(*command.split())
    script: asyncio.Task[object] | None = None
    if trouble == "busy":
        script = asyncio.create_task(others.eval("while true do end", 0))

        async def busy() -> bool:
            try:
                return await books.redis.exists("r1") == -1
            except ResponseError:
                return True

        await eventually_async(busy)

    with pytest.raises(RedisAwayError):
        await books.started("r2")
    started = RunStarted(run_id="r2", run_type="chat")
    change = project(Event(id="r2/started", source="test", data=started), recorded_ms=0)
    step = Step("events:0", 0, change, Applied("applied", 1, "running"))
    with pytest.raises(RedisAwayError):
        await books.store.advance([step], known={}, changed=[step])
    if trouble not in ("few_replicas", "no_memory"):
        with pytest.raises(RedisAwayError):
            await books.index.run("r1")

    if script is not None:
        script.cancel()
    await others.aclose()


async def test_what_another_node_of_a_cluster_has_is_to_be_asked_again_and_no_event_is_refused() -> None:
    """As of a node that was the primary, after a switch-over."""
    cluster = ("--cluster-enabled", "yes", "--cluster-port")
    buses = [free_port(), free_port()]
    nodes = [Valkey(options=(*cluster, str(bus))).start() for bus in buses]
    one, two = (cast("Any", Redis(port=node.port, decode_responses=True)) for node in nodes)
    client = connect(RedisSettings(url=nodes[0].url))
    try:
        store, index = RunStore(client, RelaySettings(), keys := Keys()), RunIndex(client, keys)
        elsewhere = await one.execute_command("CLUSTER KEYSLOT", keys.run("r2"))
        await one.execute_command("CLUSTER ADDSLOTSRANGE", 0, elsewhere - 1, elsewhere + 1, 16_383)
        await two.execute_command("CLUSTER ADDSLOTS", elsewhere)
        await one.execute_command("CLUSTER MEET", "127.0.0.1", nodes[1].port, buses[1])

        async def moved() -> bool:
            try:
                await one.get(keys.run("r2"))
            except MovedError:
                return True
            except ResponseError:
                return False
            return False

        await eventually_async(moved)
        books = Books(client, store, index, keys)
        await books.started("r1")
        with pytest.raises(RedisAwayError):
            await books.started("r2")
        with pytest.raises(RedisAwayError):
            await index.run("r2")
    finally:
        for each in (one, two, client):
            await each.aclose()
        for node in nodes:
            node.close()
