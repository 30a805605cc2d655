"""Runs on a real scheduler and Kafka: cancel, generations, children, sessions, an App."""

from __future__ import annotations

from uuid import uuid4

from tests.integration.wire.raw import Wire


async def test_a_cancelled_run_undoes_and_its_child_ends(wire: Wire) -> None:
    run_id = await wire.start("booking")
    await wire.until(lambda: wire.of(run_id, "approval.requested"), "the child waits")
    await wire.control(run_id, "cancel", "changed my mind")
    outcome = await wire.outcome(run_id)
    assert (outcome.type, outcome.data["reason"]) == ("run.cancelled", "changed my mind")
    assert wire.of(run_id, "run.progressed")[-1].data["status"] == {
        "undoing": "hotel",
        "reason": "changed my mind",
    }
    resolved = await wire.until(lambda: wire.of(run_id, "approval.resolved"), "the child's ask ends")
    assert resolved[0].data["outcome"] == "cancelled"


async def test_a_cancel_reaches_the_child_that_an_earlier_generation_has_left_running(wire: Wire) -> None:
    run_id = await wire.start("leaves_a_child", 0)
    await wire.until(lambda: len(wire.of(run_id, "approval.requested")) == 2, "run and child wait")
    await wire.control(run_id, "cancel", "enough")
    assert (await wire.outcome(run_id)).type == "run.cancelled"
    resolved = await wire.until(
        lambda: wire.of(run_id, "approval.resolved")[1:], "the child's ask ends as well as the run's"
    )
    assert resolved[0].data["outcome"] == "cancelled"


async def test_a_run_of_several_generations_has_one_start_and_one_outcome(wire: Wire) -> None:
    run_id = await wire.start("countdown", 2)
    words = [await wire.raise_event(run_id, "word", n) for n in range(3)]
    outcome = await wire.outcome(run_id)
    assert outcome.data["output"] == 2
    assert len(wire.of(run_id, "run.started")) == 1
    assert [seen.data["status"]["left"] for seen in wire.of(run_id, "run.progressed")] == [2, 1, 0]
    for word in words:
        assert (await wire.answer(word)).type == "approval.resolved"
    ids = [seen.id for seen in wire.of(run_id)]
    assert len(set(ids)) == len(ids)


async def test_a_decision_reaches_a_child_that_asks_even_if_it_was_early(wire: Wire) -> None:
    run_id = await wire.start("asks_a_child")
    asked = (await wire.until(lambda: wire.of(run_id, "approval.requested"), "the child asks"))[0]
    decision = await wire.decide(run_id, asked.data["approval_id"], True)
    outcome = await wire.outcome(run_id)
    assert outcome.data["output"] is True
    assert (await wire.answer(decision)).data["outcome"] == "approved"
    again = await wire.decide(run_id, asked.data["approval_id"], True)
    assert (await wire.answer(again)).data["reason"] == "run_finished"


async def test_the_child_of_each_generation_asks_under_an_id_of_its_own(wire: Wire) -> None:
    run_id = await wire.start("asks_a_child_again", 2)
    for number in range(3):
        asked = await wire.until(
            lambda number=number: wire.of(run_id, "approval.requested")[number:], f"child {number} asks"
        )
        decision = await wire.decide(run_id, asked[0].data["approval_id"], number < 2)
        assert (await wire.answer(decision)).type == "approval.resolved"
    assert (await wire.outcome(run_id)).data["output"] is False
    asks = wire.of(run_id, "approval.requested")
    assert len({seen.id for seen in asks}) == len({seen.data["approval_id"] for seen in asks}) == 3


async def test_a_child_that_is_tried_again_asks_under_another_id(wire: Wire) -> None:
    run_id = await wire.start("tries_a_child")
    for number, approved in enumerate((False, True)):
        asked = await wire.until(
            lambda number=number: wire.of(run_id, "approval.requested")[number:], f"attempt {number} asks"
        )
        decision = await wire.decide(run_id, asked[0].data["approval_id"], approved)
        assert (await wire.answer(decision)).type == "approval.resolved"
    assert (await wire.outcome(run_id)).data["output"] == "approved"


async def test_runs_of_one_session_continue_one_conversation_and_others_do_not(wire: Wire) -> None:
    session = f"session-{uuid4().hex[:8]}"
    texts = []
    for _ in range(2):
        run_id = await wire.start("agent.Counter", {"message": "hi"}, session_id=session)
        texts.append((await wire.outcome(run_id)).data["output"]["text"])
    run_id = await wire.start("agent.Counter", {"message": "hi"})
    texts.append((await wire.outcome(run_id)).data["output"]["text"])
    assert texts == ["turn 1", "turn 2", "turn 1"]


async def test_an_agent_run_reports_its_tokens(wire: Wire) -> None:
    run_id = await wire.start("agent.Greeter", {"message": "hi"})
    outcome = await wire.outcome(run_id)
    assert outcome.data["output"] == {"text": "a calm text"}
    assert outcome.data["usage"] == {"input_tokens": 5, "output_tokens": 3}


async def test_many_runs_side_by_side_have_one_outcome_each(wire: Wire) -> None:
    run_ids = [await wire.start("agent.Greeter", {"message": "hi"}) for _ in range(100)]
    await wire.all_outcomes(run_ids)
    assert all(len(wire.outcomes(run_id)) == 1 for run_id in run_ids)
