"""Decisions and raised events: each has its one answer, and none answers what it was not meant for."""

from __future__ import annotations

from uuid import uuid4

import pytest
from tests.integration.wire.raw import Seen, Wire


async def one_answer(wire: Wire, command_id: str) -> Seen:
    """Its answer, after everything that was on its way has come out: there must be no second one."""
    await wire.answer(command_id)
    await wire.settle()
    (answer,) = wire.answers(command_id)
    return answer


async def test_a_decision_before_its_run_waits_for_it(wire: Wire) -> None:
    run_id = f"early-{uuid4().hex}"
    decision = await wire.decide(run_id, "HumanApproval", True, approver="ann")
    await wire.start("write_article", {"topic": "tides"}, run_id=run_id)

    outcome = await wire.outcome(run_id)
    answer = await one_answer(wire, decision)

    assert outcome.type == "run.completed"
    assert (answer.type, answer.data["outcome"], answer.data["approver"]) == (
        "approval.resolved",
        "approved",
        "ann",
    )


async def test_a_decision_before_its_question_waits_for_it(wire: Wire) -> None:
    run_id = await wire.start("two_questions")
    second = await wire.decide(run_id, "HumanApproval~2", False)
    await wire.asked(run_id, "HumanApproval")
    first = await wire.decide(run_id, "HumanApproval", True)

    assert (await wire.outcome(run_id)).data["output"] == [True, False]
    assert (await one_answer(wire, first)).data["outcome"] == "approved"
    assert (await one_answer(wire, second)).data["outcome"] == "rejected"


async def test_a_late_decision_is_refused(wire: Wire) -> None:
    run_id = await wire.start("write_article", {"topic": "tides"})
    await wire.decide(run_id, "HumanApproval", True)
    await wire.outcome(run_id)
    late = await wire.decide(run_id, "HumanApproval", True)

    answer = await one_answer(wire, late)

    assert (answer.type, answer.data["reason"]) == ("approval.refused", "run_finished")
    assert answer.data["approval_id"] == "HumanApproval"


async def test_a_second_decision_is_refused_and_does_not_answer_the_next_question(wire: Wire) -> None:
    run_id = await wire.start("two_questions")
    await wire.asked(run_id, "HumanApproval")
    first = await wire.decide(run_id, "HumanApproval", True)
    await wire.asked(run_id, "HumanApproval~2")
    again = await wire.decide(run_id, "HumanApproval", True)

    refused = await one_answer(wire, again)
    assert (refused.type, refused.data["reason"]) == ("approval.refused", "already_resolved")
    assert wire.outcomes(run_id) == []

    second = await wire.decide(run_id, "HumanApproval~2", False)

    assert (await wire.outcome(run_id)).data["output"] == [True, False]
    assert (await one_answer(wire, first)).data["outcome"] == "approved"
    assert (await one_answer(wire, second)).data["outcome"] == "rejected"


async def test_one_decision_delivered_three_times_has_one_answer(wire: Wire) -> None:
    run_id = await wire.start("two_questions")
    await wire.asked(run_id, "HumanApproval")
    decision = f"thrice-{uuid4().hex}"
    for _ in range(3):
        await wire.decide(run_id, "HumanApproval", True, event_id=decision)
    await wire.asked(run_id, "HumanApproval~2")

    answer = await one_answer(wire, decision)

    assert (answer.type, answer.data["outcome"]) == ("approval.resolved", "approved")
    assert wire.outcomes(run_id) == []
    await wire.control(run_id, "cancel")
    await wire.outcome(run_id)


async def test_a_decision_for_no_run_is_refused_after_the_grace(wire: Wire) -> None:
    decision = await wire.decide(f"none-{uuid4().hex}", "HumanApproval", True)

    answer = await one_answer(wire, decision)

    assert (answer.type, answer.data["reason"]) == ("approval.refused", "unknown_run")


async def test_a_decision_that_no_question_ever_took_is_refused_when_the_run_ends(wire: Wire) -> None:
    run_id = await wire.start("wait_for_go")
    await wire.asked(run_id, "go")
    stray = await wire.decide(run_id, "SomethingElse", True)
    await wire.raise_event(run_id, "go", 1)
    await wire.outcome(run_id)

    answer = await one_answer(wire, stray)

    assert (answer.type, answer.data["reason"]) == ("approval.refused", "unknown_approval")
    assert answer.data["approval_id"] == "SomethingElse"


async def test_a_decision_brings_its_fields_into_the_run(wire: Wire) -> None:
    run_id = await wire.start("wait_for_go")
    await wire.asked(run_id, "go")
    await wire.decide(run_id, "go", True, feedback="fine", approver="ann", data={"budget": 7})

    assert (await wire.outcome(run_id)).data["output"] == {
        "approved": True,
        "feedback": "fine",
        "approver": "ann",
        "budget": 7,
    }


async def test_a_decision_with_another_digest_is_stale(wire: Wire) -> None:
    run_id = await wire.start("two_questions")
    asked = await wire.asked(run_id, "HumanApproval")
    stale = await wire.decide(run_id, "HumanApproval", True, digest="0" * 64)

    answer = await one_answer(wire, stale)
    assert (answer.type, answer.data["reason"]) == ("approval.refused", "stale")

    fresh = await wire.decide(run_id, "HumanApproval", True, digest=asked.data["digest"])
    assert (await one_answer(wire, fresh)).data["outcome"] == "approved"
    await wire.control(run_id, "cancel")
    await wire.outcome(run_id)


async def test_a_raised_event_is_delivered_as_it_is_and_resolves_the_question(wire: Wire) -> None:
    run_id = await wire.start("wait_for_go")
    await wire.asked(run_id, "go")
    raised = await wire.raise_event(run_id, "go", {"any": ["thing"]})

    assert (await wire.outcome(run_id)).data["output"] == {"any": ["thing"]}
    answer = await one_answer(wire, raised)
    assert (answer.type, answer.data["approval_id"], answer.data["outcome"]) == (
        "approval.resolved",
        "go",
        "approved",
    )


@pytest.mark.parametrize("finished", [False, True], ids=["unknown", "finished"])
async def test_a_raised_event_for_no_running_run_is_refused(wire: Wire, finished: bool) -> None:
    run_id = f"gone-{uuid4().hex}"
    if finished:
        await wire.start("agent.Joker", {"message": "x"}, run_id=run_id)
        await wire.outcome(run_id)
    raised = await wire.raise_event(run_id, "go")

    answer = await one_answer(wire, raised)

    assert (answer.type, answer.data["approval_id"]) == ("approval.refused", "go")
    assert answer.data["reason"] == ("run_finished" if finished else "unknown_run")


async def test_thirty_events_arrive_in_order(wire: Wire) -> None:
    run_id = await wire.start("collect", 30)
    raised = [await wire.raise_event(run_id, "item", number) for number in range(30)]

    assert (await wire.outcome(run_id)).data["output"] == list(range(30))
    await wire.settle()
    assert [len(wire.answers(command)) for command in raised] == [1] * 30
