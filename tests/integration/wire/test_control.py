"""Cancel, suspend, resume: each command has one answer, each run one outcome."""

from __future__ import annotations

from uuid import uuid4

import pytest
from tests.integration.wire.raw import Wire


def answered(wire: Wire, run_id: str, command_id: str) -> int:
    """How often a cancel was answered: by the run's end as cancelled, or by a refusal."""
    cancelled = {s.id for s in wire.outcomes(run_id) if s.type == "run.cancelled"}
    return len(cancelled) + len(wire.answers(command_id))


@pytest.mark.parametrize("run_type", ["wait_for_go", "agent.Joker", "ask_slowly"])
async def test_twenty_requests_each_followed_at_once_by_a_cancel(wire: Wire, run_type: str) -> None:
    run_input = {"message": "x"} if run_type == "agent.Joker" else "x"
    cancels: dict[str, str] = {}
    for _ in range(20):
        run_id = await wire.start(run_type, run_input)
        cancels[run_id] = await wire.control(run_id, "cancel", "changed my mind")

    await wire.all_outcomes(cancels, timeout_s=60)
    await wire.until(
        lambda: all(answered(wire, run_id, command) for run_id, command in cancels.items()), "20 answers"
    )
    await wire.settle()

    assert {len({s.id for s in wire.outcomes(run_id)}) for run_id in cancels} == {1}
    assert {answered(wire, run_id, command) for run_id, command in cancels.items()} == {1}
    if run_type != "agent.Joker":
        assert {wire.outcomes(run_id)[0].type for run_id in cancels} == {"run.cancelled"}
        assert {wire.outcomes(run_id)[0].data["reason"] for run_id in cancels} == {"changed my mind"}


async def test_a_cancelled_run_says_so_and_resolves_its_question(wire: Wire) -> None:
    run_id = await wire.start("wait_for_go")
    await wire.asked(run_id, "go")
    await wire.control(run_id, "cancel", "enough")

    outcome = await wire.outcome(run_id)

    assert (outcome.type, outcome.data["reason"]) == ("run.cancelled", "enough")
    (resolved,) = await wire.until(lambda: wire.of(run_id, "approval.resolved"), "approval.resolved")
    assert resolved.data["outcome"] == "cancelled"


async def test_a_cancel_of_a_finished_run_is_refused(wire: Wire) -> None:
    run_id = await wire.start("agent.Joker", {"message": "x"})
    await wire.outcome(run_id)
    answer = await wire.answer(await wire.control(run_id, "cancel"))

    assert (answer.type, answer.data["action"], answer.data["reason"]) == (
        "control.refused",
        "cancel",
        "already_finished",
    )


@pytest.mark.parametrize("action", ["cancel", "suspend", "resume"])
async def test_a_command_for_no_run_is_refused_after_the_grace(wire: Wire, action: str) -> None:
    answer = await wire.answer(await wire.control(f"none-{uuid4().hex}", action))

    assert (answer.type, answer.data["action"], answer.data["reason"]) == (
        "control.refused",
        action,
        "unknown_run",
    )


async def test_a_suspended_run_goes_on_when_it_is_resumed(wire: Wire) -> None:
    run_id = await wire.start("wait_for_go")
    await wire.asked(run_id, "go")
    suspended = await wire.answer(await wire.control(run_id, "suspend", "lunch"))
    await wire.raise_event(run_id, "go", "went")
    await wire.settle()
    assert wire.outcomes(run_id) == []

    resumed = await wire.answer(await wire.control(run_id, "resume"))

    assert (await wire.outcome(run_id)).data["output"] == "went"
    assert suspended.data["status"]["suspended"] is True
    assert suspended.data["status"]["reason"] == "lunch"
    assert resumed.data["status"]["suspended"] is False


async def test_a_suspended_run_can_be_cancelled(wire: Wire) -> None:
    run_id = await wire.start("wait_for_go")
    await wire.asked(run_id, "go")
    await wire.answer(await wire.control(run_id, "suspend"))
    await wire.control(run_id, "cancel")

    assert (await wire.outcome(run_id)).type == "run.cancelled"
