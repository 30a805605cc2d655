"""Run requests by the raw wire contract; no worker is up, so an accepted run stays pending."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from durabletask.client import OrchestrationStatus

from towline.contracts.durable import unwrap_input
from towline.contracts.events import RunTypeInfo


async def started(hub, run_id, *, within_s=20.0):
    """The run's state once it exists."""
    deadline = asyncio.get_running_loop().time() + within_s
    while (state := await hub.get_orchestration_state(run_id)) is None:
        assert asyncio.get_running_loop().time() < deadline, f"{run_id} is not started"
        await asyncio.sleep(0.05)
    return state


async def test_five_copies_of_a_request_start_one_run(bridged, hub):
    copies = [bridged.request("r-1", event_id="request-1") for _ in range(5)]
    await asyncio.gather(*copies)
    await bridged.request("r-1", event_id="another-event-same-content")
    await bridged.request("r-2")
    state = await started(hub, "r-1")
    await started(hub, "r-2")
    envelope, run_input = unwrap_input(json.loads(state.serialized_input))
    assert state.name == "review"
    assert run_input == {"topic": "rivers"}
    assert envelope.run_id == "r-1"
    assert len(await hub.get_all_orchestration_states()) == 2
    assert bridged.seen == []


async def test_a_run_id_with_other_content_is_a_dead_letter_and_leaves_the_run_alone(bridged, hub):
    await bridged.request("r-1", event_id="first")
    await bridged.request("r-1", event_id="second", input={"topic": "lakes"})
    letter = await bridged.dead_letter("second")
    assert letter.reason == "run_id_conflict"
    assert "request first" in letter.headers["towline_dead_letter_error"]
    state = await started(hub, "r-1")
    assert unwrap_input(json.loads(state.serialized_input))[1] == {"topic": "rivers"}
    assert bridged.of("r-1") == []


BINARY = {
    "ce_specversion": "1.0",
    "ce_id": "bad",
    "ce_source": "test",
    "ce_type": "towline.run.requested.v1",
    "content-type": "application/json",
}
GOOD = json.dumps({"run_id": "k-1", "run_type": "review", "input": {"topic": "x"}}).encode()


@pytest.mark.parametrize(
    ("value", "headers", "reason"),
    [
        pytest.param(b"{not json", BINARY, "invalid_json", id="invalid JSON"),
        pytest.param(b"", BINARY, "empty_value", id="empty value"),
        pytest.param(None, BINARY, "null_value", id="null value"),
        pytest.param(b'{"run_id":"k-1","run_type":3}', BINARY, "invalid_data", id="wrong type"),
        pytest.param(b'{"run_id":"k-1"}', BINARY, "invalid_data", id="missing field"),
        pytest.param(b'{"run_id":"../x","run_type":"review"}', BINARY, "invalid_run_id", id="hostile run_id"),
        pytest.param(
            b'{"run_type":"review"}',
            BINARY | {"ce_id": "no valid run id"},
            "invalid_run_id",
            id="no run_id and an id that is none",
        ),
        pytest.param(GOOD, BINARY | {"ce_type": "towline.run.unheard.v1"}, "unknown_type", id="unknown type"),
        pytest.param(GOOD, {}, "no_headers", id="no headers"),
        pytest.param(b"\xff\xfe{}", BINARY, "invalid_json", id="not UTF-8"),
        pytest.param(
            b'{"run_id":"k-1","status":1}',
            BINARY | {"ce_type": "towline.run.progressed.v1"},
            "wrong_topic",
            id="an event of another topic",
        ),
    ],
)
async def test_what_cannot_be_trusted_is_a_dead_letter_and_the_request_behind_it_runs(
    bridged, hub, value, headers, reason
):
    await bridged.raw("runs", key=b"k-1", value=value, headers=headers)
    await bridged.request("k-1", event_id="good")
    letter = await bridged.until(lambda seen: seen.topic.endswith("dead-letters"))
    assert letter.reason == reason
    assert (letter.key, letter.value or b"") == (b"k-1", value or b"")
    assert {name: letter.headers[name] for name in headers} == headers
    assert letter.headers["towline_dead_letter_topic"].endswith(".runs")
    assert letter.headers["towline_dead_letter_error"]
    assert (await started(hub, "k-1")).name == "review"
    assert bridged.of("k-1") == []


async def test_the_largest_record_that_kafka_takes_fits_into_the_dead_letters_whole(bridged):
    value = b"{" + b" " * 1_048_000
    await bridged.raw("runs", key=b"k-1", value=value, headers=BINARY)
    letter = await bridged.until(lambda seen: seen.topic.endswith("dead-letters"))
    assert letter.value == value
    assert letter.reason == "invalid_json"


async def test_a_structured_event_without_run_id_is_named_by_its_event_id(bridged, hub):
    body = {
        "specversion": "1.0",
        "id": "structured-1",
        "source": "test",
        "type": "towline.run.requested.v1",
        "datacontenttype": "application/json",
        "data": {"run_type": "review", "input": {"topic": "seas"}},
    }
    await bridged.raw(
        "runs",
        value=json.dumps(body).encode(),
        headers={"content-type": "application/cloudevents+json; charset=utf-8"},
    )
    assert (await started(hub, "structured-1")).name == "review"


async def test_an_unknown_run_type_is_rejected_by_name(bridged, hub):
    await bridged.request("r-1", run_type="reviev")
    rejected = await bridged.until(lambda seen: seen.id == "r-1/outcome")
    assert rejected.type == "run.rejected"
    assert rejected.key == b"r-1"
    assert rejected.data["run_type"] == "reviev"
    assert rejected.data["error"]["type"] == "unknown_run_type"
    assert "'reviev'" in rejected.data["error"]["message"]
    assert "review" in rejected.data["error"]["message"].split("registered are")[1]
    assert await hub.get_orchestration_state("r-1") is None


async def test_an_input_against_its_schema_is_rejected_naming_the_field(bridged):
    await bridged.request("r-1", input={"topic": 7})
    rejected = await bridged.until(lambda seen: seen.id == "r-1/outcome")
    assert rejected.data["error"]["type"] == "invalid_input"
    assert rejected.data["error"]["message"] == "input.topic: 7 is not of type 'string'"


async def test_an_expired_request_is_rejected(bridged):
    past = (datetime.now(UTC) - timedelta(seconds=1)).isoformat()
    await bridged.request("r-1", expires_at=past)
    rejected = await bridged.until(lambda seen: seen.id == "r-1/outcome")
    assert rejected.data["error"]["type"] == "expired"


async def test_a_repeat_of_an_accepted_request_is_not_rejected_when_it_has_expired_since(bridged, hub):
    soon = datetime.now(UTC) + timedelta(seconds=1.5)
    await bridged.request("r-1", expires_at=soon.isoformat())
    await started(hub, "r-1")
    await asyncio.sleep(max(0, (soon - datetime.now(UTC)).total_seconds()))
    await bridged.request("r-1", expires_at=soon.isoformat())
    await bridged.request("r-2", run_type="none")
    await bridged.until(lambda seen: seen.id == "r-2/outcome")
    assert bridged.of("r-1") == []


async def test_an_input_over_the_limit_is_rejected_with_size_and_limit(register, start_bridge, wire):
    await register()
    await start_bridge(max_input_bytes=100)
    await wire.request("r-1", input={"topic": "x" * 200})
    rejected = await wire.until(lambda seen: seen.id == "r-1/outcome")
    assert rejected.data["error"]["type"] == "input_too_large"
    assert "at most 100" in rejected.data["error"]["message"]


async def test_a_request_waits_for_the_first_app_to_register(register, start_bridge, wire, hub):
    await start_bridge(run_type_grace_s=15.0)
    await wire.request("r-1")
    await register()
    assert (await started(hub, "r-1")).name == "review"


async def test_without_any_app_a_request_is_rejected_after_the_grace(start_bridge, wire):
    await start_bridge(run_type_grace_s=0.5)
    await wire.request("r-1")
    rejected = await wire.until(lambda seen: seen.id == "r-1/outcome")
    assert "towline worker --app" in rejected.data["error"]["message"]


async def test_a_run_with_start_at_is_handed_over_and_waits(bridged, hub):
    later = datetime.now(UTC) + timedelta(hours=1)
    await bridged.request("r-1", start_at=later.isoformat())
    state = await started(hub, "r-1")
    assert state.runtime_status is OrchestrationStatus.PENDING


async def test_the_trace_of_the_publisher_reaches_the_run(bridged, hub):
    trace_id = uuid4().hex
    await bridged.event(
        "runs",
        "run.requested",
        {"run_id": "r-1", "run_type": "review", "input": {"topic": "x"}},
        traceparent=f"00-{trace_id}-00f067aa0ba902b7-01",
    )
    state = await started(hub, "r-1")
    envelope, _ = unwrap_input(json.loads(state.serialized_input))
    assert trace_id in envelope.traceparent


async def test_all_else_goes_on_while_a_large_input_is_judged(register, start_bridge, wire):
    """It takes seconds, for two megabytes as long as Kafka waits for a heartbeat."""
    items = {"type": "array", "items": {"type": "object", "properties": {"n": {"type": "string"}}}}
    await register(RunTypeInfo(name="review", input_schema=items))
    await start_bridge()
    loop = asyncio.get_running_loop()
    pauses: list[float] = []

    async def look() -> None:
        while True:
            began = loop.time()
            await asyncio.sleep(0.01)
            pauses.append(loop.time() - began)

    looking = asyncio.create_task(look())
    await wire.request("r-1", input=[{"n": n % 10} for n in range(100_000)])
    rejected = await wire.until(lambda seen: seen.id == "r-1/outcome", within_s=60)
    looking.cancel()
    assert rejected.data["error"]["type"] == "invalid_input"
    assert max(pauses) < 2
