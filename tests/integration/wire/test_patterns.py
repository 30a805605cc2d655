"""An event in, an outcome out, for all seven patterns."""

from __future__ import annotations

from typing import Any

import pytest
from tests.integration.wire.raw import Wire

from examples.demo import DEMO, Demo


@pytest.mark.parametrize("demo", DEMO, ids=lambda demo: demo.pattern)
async def test_a_pattern_runs_from_event_to_outcome(wire: Wire, demo: Demo) -> None:
    run_id = await wire.start(demo.run_type, demo.input, tags={"pattern": demo.pattern})
    for number, decision in enumerate(demo.decisions, start=1):
        approval_id = "HumanApproval" if number == 1 else f"HumanApproval~{number}"
        await wire.asked(run_id, approval_id)
        await wire.decide(run_id, approval_id, decision.approved, feedback=decision.feedback)

    outcome = await wire.outcome(run_id)

    assert outcome.type == "run.completed", outcome
    assert outcome.topic == "results"
    assert outcome.id == f"{run_id}/outcome"
    assert outcome.key == outcome.headers["ce_subject"] == run_id
    assert outcome.headers["content-type"] == "application/json"
    assert outcome.headers["ce_specversion"] == "1.0"
    assert outcome.data["run_type"] == demo.run_type
    assert outcome.data["output"]
    assert outcome.data["started_at"] <= outcome.data["finished_at"]
    (started,) = await wire.until(lambda: wire.of(run_id, "run.started"), "run.started")
    assert started.topic == "events"
    assert started.data["tags"] == {"pattern": demo.pattern}


async def test_outputs_are_those_of_the_module_itself(wire: Wire) -> None:
    expert = await wire.start("ask_experts", "What is heat?")
    spam = await wire.start("handle_email", {"email_id": "1", "email_content": "You WON"})
    mail = await wire.start("handle_email", {"email_id": "2", "email_content": "Tuesday?"})
    weather = await wire.start("agent.WeatherAgent", {"message": "The weather in Oslo?"})

    assert set((await wire.outcome(expert)).data["output"]) == {"physicist", "chemist"}
    assert (await wire.outcome(spam)).data["output"].startswith("Email marked as spam: ")
    assert (await wire.outcome(mail)).data["output"].startswith("Email sent: ")
    assert (await wire.outcome(weather)).data["output"] == {"text": "Oslo has a light breeze and 21 °C."}


async def test_an_article_is_rejected_rewritten_and_approved(wire: Wire) -> None:
    run_id = await wire.start("write_article", {"topic": "tides"})
    await wire.asked(run_id, "HumanApproval")
    rejected = await wire.decide(run_id, "HumanApproval", False, feedback="say less", approver="ann")
    await wire.asked(run_id, "HumanApproval~2")
    approved = await wire.decide(run_id, "HumanApproval~2", True)

    outcome = await wire.outcome(run_id)

    assert outcome.data["output"] == {
        "title": "On tides, take 2",
        "content": "About tides, written anew after a reviewer said: say less",
    }
    first, second = (await wire.answer(rejected)).data, (await wire.answer(approved)).data
    assert (first["outcome"], first["feedback"], first["approver"]) == ("rejected", "say less", "ann")
    assert (second["approval_id"], second["outcome"]) == ("HumanApproval~2", "approved")
    statuses = [seen.data["status"] for seen in wire.of(run_id, "run.progressed")]
    assert [status["attempt"] for status in statuses] == [1, 2]


async def test_an_article_that_nobody_decides_times_out(wire: Wire) -> None:
    run_id = await wire.start("write_article", {"topic": "tides", "approval_timeout_seconds": 1})

    outcome = await wire.outcome(run_id)

    assert outcome.type == "run.failed"
    assert outcome.data["error"]["type"] == "TimeoutError"
    assert outcome.data["error"]["message"] == "Human approval timed out after 1 second(s)."


async def test_an_article_can_be_rejected_too_often(wire: Wire) -> None:
    run_id = await wire.start("write_article", {"topic": "tides", "max_review_attempts": 2})
    for approval_id in ("HumanApproval", "HumanApproval~2"):
        await wire.asked(run_id, approval_id)
        await wire.decide(run_id, approval_id, False)

    error = (await wire.outcome(run_id)).data["error"]

    assert error["type"] == "RuntimeError"
    assert error["message"] == "Content could not be approved after 2 iteration(s)."


async def test_a_malformed_decision_fails_the_run(wire: Wire) -> None:
    run_id = await wire.start("write_article", {"topic": "tides"})
    await wire.asked(run_id, "HumanApproval")
    await wire.raise_event(run_id, "HumanApproval", "perhaps")

    assert (await wire.outcome(run_id)).data["error"]["type"] == "ValidationError"


@pytest.mark.parametrize("payload", [None, "text", {"email_id": "3"}])
async def test_input_that_the_module_refuses_fails_the_run(wire: Wire, payload: Any) -> None:
    error = (await wire.outcome(await wire.start("handle_email", payload))).data["error"]

    assert error["type"] == "ValueError"
    assert error["message"].startswith("Invalid email payload: ")


async def test_an_agent_whose_model_fails_fails_the_run(wire: Wire) -> None:
    outcome = await wire.outcome(await wire.start("agent.Broken", {"message": "Hello"}))

    assert outcome.type == "run.failed"
    assert "the model is away" in outcome.data["error"]["message"]


async def test_runs_of_one_session_continue_one_conversation(wire: Wire) -> None:
    first = await wire.start("agent.Joker", {"message": "A joke."}, session_id=f"s-{id(wire)}")
    await wire.outcome(first)
    second = await wire.start("agent.Joker", {"message": "Another."}, session_id=f"s-{id(wire)}")

    assert "joke number 2" in (await wire.outcome(second)).data["output"]["text"]


async def test_usage_is_reported_with_the_outcome(wire: Wire) -> None:
    usage = (await wire.outcome(await wire.start("write_slogan", "a lamp"))).data["usage"]

    assert usage["input_tokens"] > 0
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
