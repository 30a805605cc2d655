"""The example in `App` style over the wire: typed input, quorum, approvers, compensation."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Generator
from dataclasses import replace
from typing import Any

import pytest
from tests.integration.wire.conftest import plan
from tests.integration.wire.raw import Wire

from towline.contracts.settings import SchedulerSettings
from towline.dev.stack import Stack, StackPlan
from towline.testing import record

ISSUE = {"topic": "tides", "readers": 40}


@pytest.fixture(scope="module")
def planned(
    kafka: str, valkey: str, scheduler: str, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[], StackPlan]:
    """Plans of stacks with the example, each with a folder and names of its own."""
    given = {
        "TOWLINE_KAFKA_BOOTSTRAP": kafka,
        "TOWLINE_REDIS_URL": valkey,
        "TOWLINE_SCHEDULER_ADDRESS": scheduler,
    }
    return lambda: replace(plan(tmp_path_factory.mktemp("app"), given), app="examples.app_style.app:app")


@pytest.fixture(scope="module")
def app_stack(planned: Callable[[], StackPlan]) -> Generator[Stack]:
    with Stack(planned()).running() as stack:
        yield stack


@pytest.fixture
async def app_wire(app_stack: Stack) -> AsyncGenerator[Wire]:
    kafka = app_stack.kafka
    async with Wire(kafka.bootstrap, kafka.topic_prefix) as made:
        yield made


async def test_two_of_three_editors_approve(app_wire: Wire) -> None:
    run_id = await app_wire.start("newsletter", ISSUE)
    asked = await app_wire.asked(run_id, "approval")
    stranger = await app_wire.decide(run_id, "approval", True, approver="mallory")
    await app_wire.decide(run_id, "approval", True, approver="ann", digest=asked.data["digest"])
    await app_wire.decide(run_id, "approval", True, approver="bob", digest=asked.data["digest"])

    output = (await app_wire.outcome(run_id)).data["output"]

    assert output == {"title": "On tides", "readers": 40, "approved_by": ["ann", "bob"]}
    assert asked.data["title"] == "Send to 40 readers?"
    assert asked.data["approvers"] == ["ann", "bob", "eve"]
    assert asked.data["details"]["title"] == "On tides"
    assert asked.data["expires_at"]
    assert (await app_wire.answer(stranger)).data["reason"] == "not_authorized"


async def test_every_vote_has_its_one_answer(app_wire: Wire) -> None:
    run_id = await app_wire.start("newsletter", ISSUE)
    await app_wire.asked(run_id, "approval")
    votes = [await app_wire.decide(run_id, "approval", True, approver=name) for name in ("ann", "bob")]
    await app_wire.outcome(run_id)

    for vote in votes:
        assert (await app_wire.answer(vote, timeout_s=5)).type == "approval.resolved"


async def test_one_rejection_rejects(app_wire: Wire) -> None:
    run_id = await app_wire.start("newsletter", ISSUE)
    await app_wire.asked(run_id, "approval")
    await app_wire.decide(run_id, "approval", False, approver="eve", feedback="not now")

    outcome = await app_wire.outcome(run_id)

    assert outcome.type == "run.completed"
    assert outcome.data.get("output") is None


async def test_nobody_decides_in_time(app_wire: Wire) -> None:
    run_id = await app_wire.start("newsletter", {**ISSUE, "hours_to_decide": 1 / 3600})

    assert (await app_wire.outcome(run_id)).data["error"]["type"] == "ApprovalExpired"
    (resolved,) = app_wire.of(run_id, "approval.resolved")
    assert resolved.data["outcome"] == "expired"


@pytest.mark.parametrize(
    ("run_input", "named"),
    [
        ({"topic": "tides"}, "readers"),
        ({"topic": "", "readers": 1}, "topic"),
        ({"topic": "t", "readers": "many"}, "readers"),
        (None, "object"),
    ],
)
async def test_input_that_does_not_fit_is_rejected_with_the_field(
    app_wire: Wire, run_input: Any, named: str
) -> None:
    outcome = await app_wire.outcome(await app_wire.start("newsletter", run_input))

    assert outcome.type == "run.rejected"
    assert named in outcome.data["error"]["message"]


async def test_a_cancel_compensates(app_wire: Wire) -> None:
    run_id = await app_wire.start("newsletter", ISSUE)
    await app_wire.asked(run_id, "approval")
    await app_wire.control(run_id, "cancel", "no longer needed")

    outcome = await app_wire.outcome(run_id)

    assert (outcome.type, outcome.data["reason"]) == ("run.cancelled", "no longer needed")


async def test_a_slot_is_given_back_also_when_the_model_is_away(
    planned: Callable[[], StackPlan], scheduler: str
) -> None:
    nowhere = {
        "EXAMPLES_MODEL": "openai",
        "OPENAI_MODEL": "m",
        "OPENAI_API_KEY": "k",
        "OPENAI_BASE_URL": "http://127.0.0.1:1",
    }
    own = planned()
    stack = Stack(replace(own, settings={**own.settings, **nowhere}))
    await asyncio.to_thread(stack.start)
    try:
        hub = SchedulerSettings(address=scheduler, taskhub=own.settings["TOWLINE_SCHEDULER_TASKHUB"])
        async with Wire(stack.kafka.bootstrap, stack.kafka.topic_prefix) as wire:
            run_id = await wire.start("newsletter", ISSUE)
            outcome = await wire.outcome(run_id)
        history = record(hub, run_id).instances[0].events
    finally:
        await asyncio.to_thread(stack.stop)

    assert outcome.data["error"]["type"] == "AgentRunError"
    called = [event.taskScheduled.name for event in history if event.HasField("taskScheduled")]
    assert called == ["reserve", "release"]
