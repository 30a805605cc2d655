"""The client: runs, their outcomes, their events, and the commands it sends."""

from __future__ import annotations

import asyncio
import gc
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import pytest
from aiokafka import AIOKafkaConsumer
from opentelemetry.sdk.trace import TracerProvider
from pydantic import SecretStr
from tests.integration.contracts.broker import own_broker
from tests.integration.contracts.raw import (
    NOW,
    completed,
    failed,
    raw_producer,
    read_all,
    started,
    write_unreadable,
)
from tests.waiting import eventually_async

from towline.contracts import (
    ApprovalRequested,
    ClientError,
    DataElsewhereError,
    EncodeError,
    ErrorInfo,
    Event,
    EventProducer,
    KafkaSettings,
    KafkaUnavailableError,
    PublishError,
    ResultTimeoutError,
    RunCancelled,
    RunCancelledError,
    RunFailedError,
    RunRejected,
    RunRejectedError,
    RunRequested,
    TowlineClient,
    decode,
    encode,
    ids,
    outcomes,
)
from towline.contracts.payload_reference import PayloadReference
from towline.contracts.payloads import open_payload_store
from towline.contracts.payloads.claim_check import checked_in
from towline.contracts.settings import PayloadSettings

TIMEOUT_S = 30.0


async def test_a_started_run_gives_its_output(kafka_settings: KafkaSettings) -> None:
    async with TowlineClient(kafka_settings) as client, EventProducer(kafka_settings) as platform:
        run = await client.start("agent.Writer", {"message": "hi"})
        assert UUID(run.run_id)
        await platform.send(completed(run.run_id, {"text": "hello"}))
        assert await run.result(TIMEOUT_S) == {"text": "hello"}
        assert await run.result(TIMEOUT_S) == {"text": "hello"}
        assert (await run.outcome(TIMEOUT_S)).id == f"{run.run_id}/outcome"


async def test_each_other_outcome_is_an_error_of_its_own(kafka_settings: KafkaSettings) -> None:
    error = ErrorInfo(type="unknown_run_type", message="no such run type")
    cancelled = RunCancelled(run_id="cancelled", reason="enough", finished_at=NOW)
    async with TowlineClient(kafka_settings) as client, EventProducer(kafka_settings) as platform:
        runs = [await client.start("a", run_id=name) for name in ("failed", "cancelled", "rejected")]
        await platform.send(failed("failed"))
        await platform.send(Event(id="cancelled/outcome", source="t", data=cancelled))
        rejected = RunRejected(run_id="rejected", error=error)
        await platform.send(Event(id="rejected/outcome", source="t", data=rejected))
        with pytest.raises(RunFailedError, match="failed: E: m"):
            await runs[0].result(TIMEOUT_S)
        with pytest.raises(RunCancelledError, match="enough") as caught:
            await runs[1].result(TIMEOUT_S)
        assert caught.value.event.data == cancelled
        with pytest.raises(RunRejectedError, match="no such run type"):
            await runs[2].result(TIMEOUT_S)


async def test_an_outcome_published_before_anybody_waits_is_found(kafka_settings: KafkaSettings) -> None:
    async with EventProducer(kafka_settings) as platform:
        await platform.send_many([completed(f"old-{n}", n) for n in range(50)])
        async with TowlineClient(kafka_settings) as client:
            assert await client.run("old-7").result(TIMEOUT_S) == 7
            longest_ago = client.run("old-8", since=datetime.min.replace(tzinfo=UTC))
            assert await longest_ago.result(TIMEOUT_S) == 8
            since = datetime.now(UTC) - timedelta(minutes=5)
            results = await asyncio.gather(
                *(client.run(f"old-{n}", since=since).result(TIMEOUT_S) for n in range(50))
            )
            assert results == list(range(50))
            # Quick runs: over before the client asks, while it already reads.
            for n in range(20):
                run = await client.start("a", run_id=f"quick-{n}")
                await platform.send(completed(run.run_id, n))
                assert await run.result(TIMEOUT_S) == n


async def test_the_first_outcome_is_the_one_whichever_way_it_is_found(kafka_settings: KafkaSettings) -> None:
    async with TowlineClient(kafka_settings) as client, EventProducer(kafka_settings) as platform:
        await platform.send_many([completed("old", 1), failed("old")])
        live = await client.start("a", run_id="live")
        await client.start("a", run_id="warm")
        await platform.send(completed("warm"))
        assert await client.run("warm").result(TIMEOUT_S) == "done"
        old = client.run("old")
        # The client reads live by now, and is given another repeat while it has not yet searched the past.
        await platform.send_many([failed("old"), completed("live", 2), failed("live")])
        assert await live.result(TIMEOUT_S) == 2
        assert await old.result(TIMEOUT_S) == 1


async def test_no_outcome_in_time_is_an_error_and_waiting_again_works(kafka_settings: KafkaSettings) -> None:
    async with TowlineClient(kafka_settings) as client, EventProducer(kafka_settings) as platform:
        run = await client.start("a")
        with pytest.raises(ResultTimeoutError, match="wait again") as caught:
            await run.result(timeout=0.2)
        assert caught.value.run_id == run.run_id
        await platform.send(completed(run.run_id))
        assert await run.result(TIMEOUT_S) == "done"


async def test_thousands_of_waiting_runs_share_one_consumer(kafka_settings: KafkaSettings) -> None:
    count = 2000
    async with TowlineClient(kafka_settings) as client, EventProducer(kafka_settings) as platform:
        before = _consumers()
        # Some are waited for as they started, some as if somebody else had started them.
        runs = await asyncio.gather(*(client.start("a", n) for n in range(count // 2)))
        runs += [client.run(f"other-{n}") for n in range(count // 2)]
        waiting = [asyncio.create_task(run.result(60)) for run in runs]
        await platform.send_many([completed(run.run_id, n) for n, run in enumerate(runs)])
        assert await asyncio.gather(*waiting) == list(range(count))
        assert _consumers() - before <= 1, "at most one that searches the past"
        del runs, waiting
        await eventually_async(lambda: gc.collect() >= 0 and len(client._watch._runs) == 0)


def _consumers() -> int:
    gc.collect()
    return sum(isinstance(thing, AIOKafkaConsumer) for thing in gc.get_objects())


async def test_a_runs_events_come_once_and_end_with_its_outcome(kafka_settings: KafkaSettings) -> None:
    async with TowlineClient(kafka_settings) as client, EventProducer(kafka_settings) as platform:
        run = await client.start("a", run_id="r-1")
        ask = ApprovalRequested(run_id="r-1", approval_id="HumanApproval")
        events = [
            started("r-1"),
            Event(id=ids.approval_requested_id("r-1", "HumanApproval"), source="t", data=ask),
            *(Event(id=ids.progress_id("r-1", n), source="t", data=started("r-1").data) for n in range(100)),
        ]
        await platform.send_many([started("other"), *events, started("r-1"), completed("r-1"), failed("r-1")])
        expected = [*(event.id for event in events), "r-1/outcome"]
        async with asyncio.timeout(TIMEOUT_S):
            seen = [event async for event in run.events()]
            assert [event.id for event in seen] == expected
            assert seen[-1].type == "towline.run.completed.v1"
            assert [event.id async for event in client.run("r-1").events()] == expected


async def test_a_runs_events_are_followed_live(kafka_settings: KafkaSettings) -> None:
    async with TowlineClient(kafka_settings) as client, EventProducer(kafka_settings) as platform:
        run = await client.start("a", run_id="r-1")
        seen: list[str] = []

        async def follow() -> None:
            async for event in run.events():
                seen.append(event.id)  # noqa: PERF401  # looked at meanwhile

        following = asyncio.create_task(follow())
        await platform.send(started("r-1"))
        await eventually_async(lambda: seen == ["r-1/started"])
        await platform.send(completed("r-1"))
        await asyncio.wait_for(following, TIMEOUT_S)
        assert seen == ["r-1/started", "r-1/outcome"]


async def test_commands_are_events_of_the_contract(kafka_settings: KafkaSettings) -> None:
    async with TowlineClient(kafka_settings, source="shop/checkout") as client:
        run = await client.start("a", {"n": 1}, run_id="r-1", tags={"x": "y"}, expires_at=NOW)
        approve = await run.approve("ask", feedback="fine", data={"n": 1}, approver="me", digest="d")
        reject = await run.reject("ask~2")
        raised = await run.raise_event("Paid", [1, None])
        cancel = await run.cancel("enough", event_id="my-id")
        await run.suspend()
        await run.resume("go on")
    commands = await read_all(kafka_settings, kafka_settings.topics.runs)
    decisions = await read_all(kafka_settings, kafka_settings.topics.approvals)
    assert {record.key for record in commands + decisions} == {b"r-1"}
    assert {dict(record.headers)["ce_source"] for record in commands + decisions} == {b"shop/checkout"}
    assert [json.loads(record.value) for record in commands] == [
        {
            "run_id": "r-1",
            "run_type": "a",
            "input": {"n": 1},
            "expires_at": "2026-11-24T20:00:00Z",
            "tags": {"x": "y"},
        },
        {"run_id": "r-1", "action": "cancel", "reason": "enough"},
        {"run_id": "r-1", "action": "suspend"},
        {"run_id": "r-1", "action": "resume", "reason": "go on"},
    ]
    assert dict(commands[1].headers)["ce_id"].decode() == cancel == "my-id"
    events = [decode(value=record.value, headers=record.headers) for record in decisions]
    assert [event.id for event in events] == [approve, reject, raised]
    assert all(event.time is not None for event in events)


async def test_what_is_not_of_the_contract_is_refused_by_name(kafka_settings: KafkaSettings) -> None:
    async with TowlineClient(kafka_settings) as client:
        with pytest.raises(EncodeError, match=r"run_id: '\.\./etc' is no run id"):
            await client.start("a", run_id="../etc")
        with pytest.raises(EncodeError, match="run_id"):
            client.run("a b")
        with pytest.raises(EncodeError, match="start_at: input should have timezone info"):
            await client.start("a", start_at=datetime(2026, 1, 1))
        with pytest.raises(EncodeError, match="input"):
            await client.start("a", object())  # pyright: ignore[reportArgumentType]
        with pytest.raises(EncodeError, match="approval_id"):
            await client.run("r").approve("")
        with pytest.raises(ClientError, match="since"):
            client.results("group", since=NOW)
        for use in (lambda since: client.run("r", since=since), client.events, client.results):
            with pytest.raises(ClientError, match="since: has no offset"):
                use(since=datetime(2026, 1, 1))  # pyright: ignore[reportUnknownLambdaType]
    assert await read_all(kafka_settings, kafka_settings.topics.runs) == []


async def test_the_current_trace_goes_with_a_request(
    kafka_settings: KafkaSettings,
) -> None:
    async with TowlineClient(kafka_settings) as client:
        with TracerProvider().get_tracer("tests").start_as_current_span("checkout") as span:
            await client.start("a")
    (record,) = await read_all(kafka_settings, kafka_settings.topics.runs)
    event = decode(value=record.value, headers=record.headers)
    assert event.traceparent is not None
    assert event.traceparent.split("-")[1] == format(span.get_span_context().trace_id, "032x")


async def test_closing_the_client_ends_every_wait(kafka_settings: KafkaSettings) -> None:
    async with TowlineClient(kafka_settings) as client:
        waiting = asyncio.create_task(client.run("never").result())
        results = client.results(start="latest")
        streaming = asyncio.create_task(anext(results))
        await eventually_async(lambda: client._watch._live is not None and results._reader is not None)
    with pytest.raises(ClientError, match="closed"):
        await asyncio.wait_for(waiting, TIMEOUT_S)
    with pytest.raises(StopAsyncIteration):
        await asyncio.wait_for(streaming, TIMEOUT_S)


async def test_a_client_without_broker_says_so() -> None:
    with pytest.raises(KafkaUnavailableError, match="start it"):
        async with TowlineClient(KafkaSettings(bootstrap="127.0.0.1:1"), connect_timeout_s=0.5):
            pass


async def test_bad_records_on_results_are_counted_and_passed_over(kafka_settings: KafkaSettings) -> None:
    async with (
        TowlineClient(kafka_settings) as client,
        EventProducer(kafka_settings) as platform,
        raw_producer(kafka_settings) as raw,
    ):
        run = await client.start("a", run_id="r-1")
        waiting = asyncio.create_task(run.result(TIMEOUT_S))
        await eventually_async(lambda: client._watch._live is not None)
        results = kafka_settings.topics.results
        await raw.send_and_wait(results, b"{", key=b"r-1")
        for partition in range(3):
            await write_unreadable(raw, results, partition)
        await platform.send(completed("r-1"))
        assert await waiting == "done"
        assert client.undecodable_count == 1
        # The search of the past gets by them too.
        async with TowlineClient(kafka_settings) as other:
            assert await other.run("r-1").result(TIMEOUT_S) == "done"


@pytest.mark.slow
async def test_waiting_survives_a_killed_broker(tmp_path: Path) -> None:
    async with own_broker(tmp_path) as (kafka, client, platform):
        run, other = await client.start("a"), await client.start("a")
        await platform.send(completed(other.run_id))
        assert await other.result(TIMEOUT_S) == "done"
        waiting = asyncio.create_task(run.result(90))
        follow = asyncio.create_task(_collect(run.events()))
        kafka.kill()
        await asyncio.to_thread(kafka.start)
        await platform.send_many([started(run.run_id), completed(run.run_id, "after")])
        assert await waiting == "after"
        assert await asyncio.wait_for(follow, 90) == [f"{run.run_id}/started", f"{run.run_id}/outcome"]


async def _collect(events: object) -> list[str]:
    return [event.id async for event in events]  # pyright: ignore[reportGeneralTypeIssues, reportUnknownVariableType, reportUnknownMemberType]


@pytest.mark.parametrize("reads_live", [False, True])
async def test_a_run_started_again_after_a_lost_acknowledgement_gives_the_outcome_it_had_by_then(
    kafka_settings: KafkaSettings, monkeypatch: pytest.MonkeyPatch, reads_live: bool
) -> None:
    async with TowlineClient(kafka_settings) as client, EventProducer(kafka_settings) as platform:
        send = EventProducer.send

        async def lossy(self: EventProducer, event: Event) -> None:
            await send(self, event)
            if isinstance(event.data, RunRequested):
                monkeypatch.setattr(EventProducer, "send", send)
                await platform.send(completed("r-1", "quick"))
                raise PublishError("no acknowledgement in time", event_id=event.id)

        if reads_live:
            warm = await client.start("a")
            await platform.send(completed(warm.run_id))
            assert await warm.result(TIMEOUT_S) == "done"
        monkeypatch.setattr(EventProducer, "send", lossy)
        with pytest.raises(PublishError):
            await client.start("a", run_id="r-1")
        gc.collect()
        # As its message says; the snapshot of where topics end has been renewed meanwhile.
        monkeypatch.setattr(outcomes, "_SNAPSHOT_MAX_AGE_S", -1.0)
        run = await client.start("a", run_id="r-1")
        assert await run.result(TIMEOUT_S) == "quick"


async def test_an_outcome_that_can_not_be_had_is_an_error_each_time_it_is_asked_for(
    kafka_settings: KafkaSettings,
) -> None:
    async with TowlineClient(kafka_settings) as client, EventProducer(kafka_settings) as platform:
        run = await client.start("a")
        record = encode(completed(run.run_id))
        reference = PayloadReference.of(record.value or b"")
        elsewhere = replace(
            record, value=None, headers=(*record.headers, ("ce_dataref", str(reference).encode()))
        )
        await platform.send_record(kafka_settings.topics.results, elsewhere, name="outcome")
        for _ in range(2):
            with pytest.raises(DataElsewhereError):
                await run.result(TIMEOUT_S)


@pytest.mark.parametrize("seen", ["as it comes", "in what is retained"])
async def test_a_run_does_not_wait_for_the_payload_of_another(
    kafka_settings: KafkaSettings, tmp_path: Path, seen: str
) -> None:
    folder, away = tmp_path / "payloads", tmp_path / "away"
    payloads = PayloadSettings(url=SecretStr(f"file://{folder}"))
    results = kafka_settings.topics.results
    async with (
        TowlineClient(kafka_settings, payloads=payloads) as client,
        EventProducer(kafka_settings) as platform,
    ):
        store = open_payload_store(payloads)
        assert store is not None
        large = await checked_in(encode(completed("large", "x" * 2000)), "large/outcome", store)
        folder.rename(away)
        records = [large, encode(completed("large", "repeat")), encode(completed("small"))]

        async def publish() -> None:
            for record in records:
                await platform.send_record(results, record, name="outcome", partition=0)

        if seen == "as it comes":
            runs = [await client.start("a", run_id=run_id) for run_id in ("large", "small")]
        else:
            await publish()
            runs = [client.run(run_id) for run_id in ("large", "small")]
        waiting = [asyncio.create_task(run.result(TIMEOUT_S)) for run in runs]
        if seen == "as it comes":
            await publish()
        assert await waiting[1] == "done"
        assert not waiting[0].done()
        away.rename(folder)
        assert await waiting[0] == "x" * 2000, "the first outcome is the one"
