"""The same programs on the SDK's own worker and on our dispatcher, replaying or not, come out alike."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncGenerator, Callable
from typing import Any
from uuid import uuid4

import httpx
import pytest
import redis.asyncio
from tests.integration.wire.raw import Seen, Wire
from tests.integration.worker.dispatcher_programs import SLOW_MODEL_S
from tests.waiting import eventually_async

from towline.contracts.stream import stream_key, turns_key
from towline.dev.stack import Stack

StackFactory = Callable[..., Stack]
PROGRAMS = "tests.integration.worker.dispatcher_programs:setup_worker"
WAYS = (("async", "never"), ("async", "always"), ("sdk", "always"))
"""Dispatcher, and whether it replays."""
PATIENCE_S = 90.0
pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module", params=WAYS, ids="-".join)
def hosted(request: pytest.FixtureRequest, module_stack: StackFactory) -> Stack:
    dispatcher, replay = request.param
    settings = {"TOWLINE_WORKER_DISPATCHER": dispatcher, "TOWLINE_WORKER_REPLAY": replay}
    return module_stack(PROGRAMS, settings=settings, roles=("bridge", "worker"))


@pytest.fixture
async def wire(hosted: Stack) -> AsyncGenerator[Wire]:
    async with Wire(hosted.kafka.bootstrap, hosted.kafka.topic_prefix) as made:
        yield made


@pytest.mark.parametrize(
    ("program", "given", "output"),
    [
        ("ask_echo", "hello", "echo: hello"),
        ("survives_an_agent", "x", "AgentRunError: True"),
        ("turns_of_one_session", 3, ["turn 1", "turn 2", "turn 3"]),
        ("timer", None, True),
        ("fan_out", 10, 285),
        ("chain", 10, 285),
        ("failing_activity", 7, True),
        ("parent", 5, 30),
        ("generations", 3, "last generation"),
    ],
)
async def test_a_program_comes_out_alike(wire: Wire, program: str, given: Any, output: Any) -> None:
    run_id = await wire.start(program, given)
    outcome = await wire.outcome(run_id, timeout_s=PATIENCE_S)
    assert (outcome.type, outcome.data.get("output")) == ("run.completed", output), outcome


async def test_turns_go_on_where_the_last_one_ended(hosted: Stack, wire: Wire) -> None:
    before = _turns(hosted)
    run_id = await wire.start("chain", 20)
    assert (await wire.outcome(run_id, timeout_s=PATIENCE_S)).data["output"] == 2470
    after = _turns(hosted)
    gained = {how: after.get(how, 0) - before.get(how, 0) for how in ("kept", "replayed", "stale")}
    match hosted.plan.settings:
        case {"TOWLINE_WORKER_DISPATCHER": "sdk"}:
            assert not after
        case {"TOWLINE_WORKER_REPLAY": "never"}:
            assert gained == {"kept": 20, "replayed": 1, "stale": 0}
        case _:
            assert gained == {"kept": 0, "replayed": 21, "stale": 0}


async def test_a_history_may_be_larger_than_a_message_of_the_scheduler(hosted: Stack, wire: Wire) -> None:
    before = _turns(hosted)
    run_id = await wire.start("long_history", 24)
    outcome = await wire.outcome(run_id, timeout_s=PATIENCE_S)
    if hosted.plan.settings["TOWLINE_WORKER_DISPATCHER"] == "sdk":
        # Its worker can't fetch a history: docs/scheduler.md, "Limits".
        assert outcome.type == "run.failed"
        assert outcome.data["error"]["type"] == "PayloadTooLarge"
    else:
        assert (outcome.type, outcome.data.get("output")) == ("run.completed", 6_000_000), outcome
        kept = 24 if hosted.plan.settings["TOWLINE_WORKER_REPLAY"] == "never" else 0
        assert _turns(hosted).get("kept", 0) - before.get("kept", 0) == kept


def _turns(hosted: Stack) -> dict[str, int]:
    text = httpx.get(f"http://127.0.0.1:{hosted['worker'].own_ports()[0]}/metrics").text
    found = re.findall(r'^towline_worker_turns_total\{.*?how="(\w+)".*?\} ([\d.]+)', text, re.MULTILINE)
    return {how: int(float(count)) for how, count in found}


async def test_events_arrive_in_the_order_in_which_they_were_raised(wire: Wire) -> None:
    run_id = await wire.start("events")
    for word in ("one", "two"):
        await wire.raise_event(run_id, "word", word)
    assert (await wire.outcome(run_id, timeout_s=PATIENCE_S)).data["output"] == ["one", "two"]


async def test_a_program_that_raises_fails_its_run(wire: Wire) -> None:
    run_id = await wire.start("raises", "nowhere")
    outcome = await wire.outcome(run_id, timeout_s=PATIENCE_S)
    assert outcome.type == "run.failed"
    assert outcome.data["error"]["type"].endswith("LookupError")
    assert "nowhere" in outcome.data["error"]["message"]


async def test_an_operation_that_fails_changes_nothing_of_its_entity(wire: Wire) -> None:
    async def call(*operation: Any) -> Seen:
        run_id = await wire.start("tally", {"key": key, "call": operation})
        return await wire.outcome(run_id, timeout_s=PATIENCE_S)

    key = uuid4().hex
    assert (await call("add", 5)).data["output"] == 5
    failed = await call("add", -100)
    # The SDK lets no orchestration catch this one.
    assert (failed.type, failed.data["error"]["type"]) == ("run.failed", "EntityOperationFailedException")
    assert (await call("total")).data["output"] == 5


async def test_forty_slow_agents_work_side_by_side(wire: Wire) -> None:
    began = time.monotonic()
    run_ids = [await wire.start("ask_slow", f"{number}") for number in range(40)]
    await wire.all_outcomes(run_ids, timeout_s=PATIENCE_S)
    took_s = time.monotonic() - began
    said = [wire.outcomes(run_id)[0].data["output"] for run_id in run_ids]
    assert said == [f"slowly: {number}" for number in range(40)]
    # One after the other they would take forty times the model's time.
    assert took_s < 20 * SLOW_MODEL_S


@pytest.mark.parametrize(
    ("dispatcher", "reports"), [("async", "direct"), ("async", "grpc"), ("sdk", "direct")]
)
async def test_a_scheduler_that_comes_back_is_found_again(
    stack: StackFactory, dispatcher: str, reports: str
) -> None:
    started = await asyncio.to_thread(
        stack,
        PROGRAMS,
        own=("scheduler",),
        settings={"TOWLINE_WORKER_DISPATCHER": dispatcher, "TOWLINE_WORKER_REPORTS": reports},
        roles=("bridge", "worker"),
    )
    async with Wire(started.kafka.bootstrap, started.kafka.topic_prefix) as wire:
        run_id = await wire.start("events")
        await wire.until(lambda: wire.of(run_id, "run.started"), "it waits", timeout_s=PATIENCE_S)
        await asyncio.to_thread(started["scheduler"].kill)
        await asyncio.to_thread(started["scheduler"].start)
        for word in ("one", "two"):
            await wire.raise_event(run_id, "word", word)
        outcome = await wire.outcome(run_id, timeout_s=PATIENCE_S)
        assert outcome.data["output"] == ["one", "two"]
    said = [json.loads(line) for line in (started["scheduler"].data / "log").read_text().splitlines()]
    connected = [line["repeats_reports"] for line in said if line["event"] == "worker.connected"]
    assert set(connected) == {dispatcher == "async"}, "the SDK's own gives a report up when it fails"


async def test_a_cancel_ends_the_model_call_that_is_under_way(stack: StackFactory) -> None:
    started = await asyncio.to_thread(stack, PROGRAMS, roles=("bridge", "worker"))
    readers = redis.asyncio.Redis.from_url(started.redis_url, decode_responses=True)
    async with Wire(started.kafka.bootstrap, started.kafka.topic_prefix) as wire, readers:
        run_id = await wire.start("ask_endless", "anything")

        async def entries() -> list[dict[str, str]]:
            return [fields for _, fields in await readers.xrange(stream_key(run_id))]

        await wire.until(lambda: wire.of(run_id, "run.started"), "it began", timeout_s=PATIENCE_S)
        # The model call is under way once its turn is open.
        await eventually_async(lambda: _exists(readers, run_id), "the agent's turn is open")
        await wire.control(run_id, "cancel", "no longer needed")
        outcome = await wire.outcome(run_id, timeout_s=PATIENCE_S)
        assert (outcome.type, outcome.data["reason"]) == ("run.cancelled", "no longer needed")

        async def told() -> bool:
            return any(entry["type"] == "reset" and "cancelled" in str(entry) for entry in await entries())

        await eventually_async(told, "the stream says that the turn was cancelled")


async def test_an_agent_that_compensates_is_not_cancelled_by_what_comes_meanwhile(
    stack: StackFactory,
) -> None:
    started = await asyncio.to_thread(stack, PROGRAMS, roles=("bridge", "worker"))
    readers = redis.asyncio.Redis.from_url(started.redis_url, decode_responses=True)
    async with Wire(started.kafka.bootstrap, started.kafka.topic_prefix) as wire, readers:
        run_id = await wire.start("undoes_by_an_agent", "anything")

        async def is_open(number: int) -> bool:
            return bool(await readers.hexists(turns_key(run_id), f"turn:{number}"))

        await eventually_async(lambda: is_open(1), "the agent's turn is open")
        await wire.control(run_id, "cancel", "no longer needed")
        await eventually_async(lambda: is_open(2), "the turn that compensates is open")
        await wire.raise_event(run_id, "news", "nobody waits for it")
        outcome = await wire.outcome(run_id, timeout_s=PATIENCE_S)
        assert outcome.type == "run.cancelled", outcome
        (progress,) = wire.of(run_id, "run.progressed")
        assert progress.data["status"] == {"undone": "slowly: undo"}


async def _exists(client: Any, run_id: str) -> bool:
    return bool(await client.exists(turns_key(run_id)))
