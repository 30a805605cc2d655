"""Asks and their answers in running orchestrations, on recorded histories."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from durabletask import task
from durabletask.task import when_any
from pydantic import BaseModel
from tests.unit.worker.simulator import (
    START,
    Simulator,
    cancel,
    child_ask,
    decision,
    event,
    events,
    ids_of,
    raised,
    raises_on,
    terminated,
    told,
)

from towline.contracts.canonical import approval_digest
from towline.contracts.durable import RaisedCommand, RunEnvelope
from towline.contracts.events import RunFailed
from towline.worker import RunHandle

ASK = "run-1/approval/HumanApproval"


class HumanApproval(BaseModel):
    approved: bool
    feedback: str = ""


def review(ctx: task.OrchestrationContext, attempts: int) -> Any:
    """As upstream's human-in-the-loop sample does it."""
    for attempt in range(1, attempts + 1):
        decided = ctx.wait_for_external_event("HumanApproval")
        timeout = ctx.create_timer(timedelta(hours=72))
        winner = yield when_any([decided, timeout])
        if winner == timeout:
            raise TimeoutError("Human approval timed out after 259200 second(s).")
        timeout.cancel()
        approval = HumanApproval.model_validate(decided.get_result())
        if approval.approved:
            return {"attempt": attempt, "feedback": approval.feedback}
    raise RuntimeError(f"Content could not be approved after {attempts} iteration(s).")


def particular(ctx: Any, _: Any) -> Any:
    def shape(_: Any) -> Any:
        raise KeyError("a field that the answer does not have")

    answer = ctx.asks.wait_for_event("HumanApproval", shape=shape)
    try:
        return (yield answer)
    except KeyError as error:
        return str(error)


def test_an_answer_that_breaks_what_takes_it_is_answered_and_raised_into_the_code() -> None:
    run = Simulator.of(particular)
    run.start()
    said = run.turn(decision("HumanApproval"))
    assert ids_of(said) == ["run-1/approval/HumanApproval/resolved/d1", "run-1/outcome"]
    assert "a field that the answer does not have" in run.result


def outcome_of(said: Any) -> Any:
    return events(said)[-1].data


def test_a_wait_is_announced_with_the_deadline_it_is_raced_against() -> None:
    run = Simulator.of(review, run_input=2)
    said = told(run.start())
    assert said[1][0] == f"{ASK}/requested"
    assert said[1][1]["approval_id"] == "HumanApproval"
    assert said[1][1]["expires_at"] == "2026-11-27T12:00:00Z"


def test_reject_then_approve_and_a_repeat_of_the_first_answers_nothing_else() -> None:
    run = Simulator.of(review, run_input=3)
    run.start()
    said = run.turn(decision("HumanApproval", False, "d1", feedback="shorter", approver="ann"))
    assert told(said)[0] == (
        f"{ASK}/resolved/d1",
        {
            "run_id": "run-1",
            "approval_id": "HumanApproval",
            "outcome": "rejected",
            "approver": "ann",
            "feedback": "shorter",
        },
    )
    assert ids_of(said)[1] == f"{ASK}~2/requested"

    assert run.turn(decision("HumanApproval", False, "d1")) == [], "the same command again"
    said = run.turn(decision("HumanApproval", True, "d2"))
    assert told(said) == [
        (
            f"{ASK}/refused/d2",
            {"run_id": "run-1", "approval_id": "HumanApproval", "reason": "already_resolved"},
        )
    ]
    said = run.turn(decision("HumanApproval~2", True, "d3", feedback="good"))
    assert ids_of(said) == [f"{ASK}~2/resolved/d3", "run-1/outcome"]
    assert run.result == {"attempt": 2, "feedback": "good"}


def test_decisions_that_come_early_wait_for_their_ask() -> None:
    run = Simulator.of(review, run_input=3)
    said = run.start(decision("HumanApproval~2", True, "d2"), decision("HumanApproval", False, "d1"))
    assert ids_of(said) == [
        "run-1/started",
        f"{ASK}/requested",
        f"{ASK}/resolved/d1",
        f"{ASK}~2/requested",
        f"{ASK}~2/resolved/d2",
        "run-1/outcome",
    ]


def test_a_timeout_expires_the_ask_and_fails_the_run() -> None:
    run = Simulator.of(review, run_input=1)
    run.start()
    said = run.turn(run.timer_fired())
    assert told(said)[0][1]["outcome"] == "expired"
    outcome = outcome_of(said)
    assert isinstance(outcome, RunFailed)
    assert outcome.error.type == "TimeoutError"
    assert outcome.error.message == "Human approval timed out after 259200 second(s)."


def test_too_many_rejections_fail_the_run() -> None:
    run = Simulator.of(review, run_input=1)
    run.start()
    outcome = outcome_of(run.turn(decision("HumanApproval", False)))
    assert (outcome.error.type, outcome.error.message) == (
        "RuntimeError",
        "Content could not be approved after 1 iteration(s).",
    )


def test_a_malformed_event_fails_the_run_with_the_validation_error() -> None:
    run = Simulator.of(review, run_input=1)
    run.start()
    outcome = outcome_of(run.turn(event("HumanApproval", {"nonsense": 1})))
    assert outcome.error.type == "ValidationError"


def test_a_native_event_still_answers() -> None:
    run = Simulator.of(review, run_input=1)
    run.start()
    said = run.turn(raised("HumanApproval", {"approved": True, "feedback": "native"}))
    assert ids_of(said) == [f"{ASK}/resolved", "run-1/outcome"]
    assert run.result == {"attempt": 1, "feedback": "native"}


def test_a_native_event_that_came_early_still_answers() -> None:
    def later(ctx: task.OrchestrationContext, _: Any) -> Any:
        yield ctx.create_timer(timedelta(seconds=1))
        return (yield ctx.wait_for_external_event("go"))

    run = Simulator.of(later)
    run.start(raised("go", 7))
    said = run.turn(run.timer_fired())
    assert ids_of(said) == ["run-1/approval/go/requested", "run-1/approval/go/resolved", "run-1/outcome"]
    assert run.result == 7


def test_what_nobody_takes_is_refused_when_the_run_ends() -> None:
    run = Simulator.of(review, run_input=1)
    run.start()
    run.turn(decision("Nonsense", True, "d9"), event("other", 1, "e9"))
    said = run.turn(decision("HumanApproval", True, "d1"), decision("HumanApproval", True, "d2"))
    assert [(one, data.get("reason")) for one, data in told(said)] == [
        (f"{ASK}/resolved/d1", None),
        ("run-1/approval/Nonsense/refused/d9", "unknown_approval"),
        ("run-1/approval/other/refused/e9", "unknown_approval"),
        (f"{ASK}/refused/d2", "run_finished"),
        ("run-1/outcome", None),
    ]


def test_a_decision_that_shares_the_turn_of_a_termination_is_answered() -> None:
    run = Simulator.of(review, run_input=1)
    run.start()
    said = run.turn(terminated(), decision("HumanApproval", True, "d1"))
    assert [one for one in ids_of(said) if "d1" in one] == [f"{ASK}/refused/d1"]


def collect(ctx: task.OrchestrationContext, count: int) -> Any:
    got = []
    for _ in range(count):
        got.append((yield ctx.wait_for_external_event("item")))  # noqa: PERF401
    return got


def test_thirty_events_arrive_in_order_however_they_are_spread_over_turns() -> None:
    run = Simulator.of(collect, run_input=30)
    run.start(*[event("item", n, f"e{n}") for n in range(5)])
    run.turn(*[event("Item", n, f"e{n}") for n in range(5, 12)])
    for n in range(12, 30):
        run.turn(event("item", n, f"e{n}"))
    assert run.result == list(range(30))
    assert len([one for one in ids_of(run.said) if "/resolved/" in one]) == 30


def test_an_event_without_approved_resolves_as_approved_and_is_delivered_as_it_is() -> None:
    run = Simulator.of(collect, run_input=1)
    run.start()
    said = run.turn(event("item", [1, {"a": 2}]))
    assert told(said)[0][1]["outcome"] == "approved"
    assert run.result == [[1, {"a": 2}]]


def test_a_decisions_own_fields_win_over_its_data() -> None:
    run = Simulator.of(collect, run_input=1)
    run.start()
    run.turn(decision("item", False, approver="ann", data={"approver": "eve", "approved": True, "n": 1}))
    assert run.result == [{"approved": False, "feedback": "", "approver": "ann", "n": 1}]


def remind(ctx: task.OrchestrationContext, _: Any) -> Any:
    decided = ctx.wait_for_external_event("HumanApproval")
    for _ in range(3):
        timer = ctx.create_timer(timedelta(hours=1))
        if (yield when_any([decided, timer])) is decided:
            return decided.get_result()["approved"]
        yield ctx.call_activity("remind")
    return "gave up"


def test_a_decision_during_a_reminder_is_kept_for_the_wait_that_goes_on() -> None:
    run = Simulator.of(remind)
    run.start()
    run.turn(run.timer_fired())
    assert run.turn(decision("HumanApproval", True)) == []
    said = run.turn(run.activity_done())
    assert ids_of(said) == [f"{ASK}/resolved/d1", "run-1/outcome"]
    assert run.result is True


def test_a_decision_after_the_last_timeout_is_refused_as_expired() -> None:
    run = Simulator.of(remind)
    run.start()
    for _ in range(3):
        run.turn(run.timer_fired())
        if len(run.pending("timer")) == 0 and run.pending("activity"):
            said = run.turn(decision("HumanApproval", True, "late")) if _ == 2 else []
            assert said == []
            said = run.turn(run.activity_done())
    assert [(one, data.get("outcome") or data.get("reason")) for one, data in told(said)][:2] == [
        (f"{ASK}/resolved", "expired"),
        (f"{ASK}/refused/late", "expired"),
    ]
    assert run.result == "gave up"


def asks_again(ctx: task.OrchestrationContext, _: Any) -> Any:
    """An abandoned wait natively takes the next event of its name."""
    first = ctx.wait_for_external_event("go")
    yield when_any([first, ctx.create_timer(timedelta(hours=1))])
    second = yield ctx.wait_for_external_event("go")
    return second


@pytest.mark.parametrize("answer", [raised("go", 5), event("go", 5)])
def test_an_abandoned_wait_does_not_take_the_next_event(answer: Any) -> None:
    run = Simulator.of(asks_again)
    run.start()
    said = run.turn(run.timer_fired())
    assert [(one, data.get("outcome")) for one, data in told(said)] == [
        ("run-1/approval/go/resolved", "expired"),
        ("run-1/approval/go~2/requested", None),
    ]
    run.turn(answer)
    assert run.result == 5


def gives_up(ctx: task.OrchestrationContext, _: Any) -> Any:
    decided = ctx.wait_for_external_event("HumanApproval")
    yield when_any([decided, ctx.call_activity("other")])
    decided.cancel()
    yield ctx.call_activity("more")


def test_a_wait_that_is_given_up_is_cancelled() -> None:
    run = Simulator.of(gives_up)
    run.start()
    said = run.turn(run.activity_done())
    assert told(said)[0][1]["outcome"] == "cancelled"
    said = run.turn(decision("HumanApproval"))
    assert told(said)[0][1]["reason"] == "already_resolved"


def test_a_decision_on_something_else_than_was_shown_is_stale() -> None:
    run = Simulator.of(review, run_input=1)
    shown = told(run.start())[1][1]["digest"]
    said = run.turn(decision("HumanApproval", True, "d1", digest="0" * 64))
    assert told(said)[0][1]["reason"] == "stale"
    said = run.turn(decision("HumanApproval", True, "d2", digest=shown))
    assert told(said)[0][1]["outcome"] == "approved"


def test_asks_of_a_cancelled_run_are_cancelled_before_its_outcome() -> None:
    run = Simulator.of(review, run_input=1)
    run.start()
    said = run.turn(cancel("no"))
    assert [(one, data.get("outcome")) for one, data in told(said)] == [
        (f"{ASK}/resolved", "cancelled"),
        ("run-1/outcome", None),
    ]


# Children.


def child_of(name: str = "0001") -> dict[str, Any]:
    return {
        "envelope": RunEnvelope(run_id="run-1", run_type="collect", role="child"),
        "instance_id": f"run-1:{name}",
        "parent": "run-1",
    }


def test_a_childs_ask_is_announced_under_the_run_and_told_to_the_root() -> None:
    child = Simulator.of(collect, run_input=1, **child_of())
    said = child.start()
    assert told(said)[0] == (
        "run-1/approval/0001~item/requested",
        {
            "run_id": "run-1",
            "approval_id": "0001~item",
            "digest": approval_digest(title=None, details=None),
        },
    )
    [notice] = raises_on(said)
    assert (notice.instance_id, notice.name) == ("run-1", "towline.ask")
    assert notice.data["approval_id"] == "0001~item"
    assert notice.data["instance_id"] == "run-1:0001"
    said = child.turn(decision("0001~item", True, "d1"))
    assert ids_of(said) == ["run-1/approval/0001~item/resolved/d1"]
    [notice] = raises_on(said)
    assert (notice.data["phase"], notice.data["answered"]) == ("resolved", ["d1"])
    assert child.status == "completed"


def waits_for_child(ctx: task.OrchestrationContext, _: Any) -> Any:
    return (yield ctx.call_sub_orchestrator("collect", input=1))


@pytest.mark.parametrize("early", [True, False])
def test_the_root_hands_a_decision_on_to_the_child_that_asks(early: bool) -> None:
    run = Simulator.of(waits_for_child)
    run.start()
    ask, decided = child_ask("0001~item", "run-1:0001", name="item"), decision("0001~item", True, "d1")
    said = run.turn(decided, ask) if early else [*run.turn(ask), *run.turn(decided)]
    [forwarded] = raises_on(said)
    assert (forwarded.instance_id, forwarded.name) == ("run-1:0001", "towline.decision")
    assert RaisedCommand.model_validate(forwarded.data).command_id == "d1"
    assert events(said) == []
    run.turn(child_ask("0001~item", "run-1:0001", phase="resolved", answered=["d1"]))
    said = run.turn(decision("0001~item", True, "d2"))
    assert told(said)[0][1]["reason"] == "already_resolved"
    said = run.turn(run.child_done([1]))
    assert ids_of(said) == ["run-1/outcome"]


def test_an_event_for_the_run_reaches_the_child_that_waits_for_its_name() -> None:
    run = Simulator.of(waits_for_child)
    run.start()
    run.turn(child_ask("0001~item", "run-1:0001", name="item"))
    [forwarded] = raises_on(run.turn(event("item", 1, "e1")))
    assert forwarded.instance_id == "run-1:0001"


def test_a_decision_that_a_finished_child_never_saw_is_refused_by_the_root() -> None:
    run = Simulator.of(waits_for_child)
    run.start()
    run.turn(child_ask("0001~item", "run-1:0001", name="item"))
    run.turn(decision("0001~item", True, "d1"), decision("0001~item", True, "d2"))
    said = run.turn(child_ask("0001~item", "run-1:0001", phase="resolved", answered=["d1"]))
    assert told(said) == [
        (
            "run-1/approval/0001~item/refused/d2",
            {"run_id": "run-1", "approval_id": "0001~item", "reason": "already_resolved"},
        )
    ]


def test_times_are_those_of_the_orchestration() -> None:
    run = Simulator.of(review, run_input=1)
    run.now = START + timedelta(days=1)
    assert told(run.start())[1][1]["expires_at"] == "2026-11-28T12:00:00Z"


def test_a_decision_beside_a_native_event_that_was_there_first_is_refused() -> None:
    def later(ctx: task.OrchestrationContext, _: Any) -> Any:
        yield ctx.create_timer(timedelta(seconds=1))
        got = yield ctx.wait_for_external_event("go")
        yield ctx.create_timer(timedelta(seconds=1))
        return got

    run = Simulator.of(later)
    run.start(raised("go", 7), decision("go", True, "d1"))
    said = run.turn(run.timer_fired())
    assert [(one, data.get("outcome") or data.get("reason")) for one, data in told(said)][1:] == [
        ("run-1/approval/go/resolved", "approved"),
        ("run-1/approval/go/refused/d1", "already_resolved"),
    ]


def waits_for_a_name(ctx: task.OrchestrationContext, name: str) -> Any:
    try:
        return (yield ctx.wait_for_external_event(name))
    finally:
        ctx.set_custom_status("closing")


@pytest.mark.parametrize("name", ["", "approve\nthis", "half a pair \ud83d", "a" * 257])
def test_a_wait_for_a_name_that_no_event_can_have_fails_the_run_and_says_so(name: str) -> None:
    run = Simulator.of(waits_for_a_name, run_input=name)
    outcome = events(run.start())[-1].data
    assert isinstance(outcome, RunFailed)
    assert outcome.error.type == "ValueError"
    assert "use 1 to 256 characters" in outcome.error.message
    assert "requested" not in str(ids_of(run.said))


def asks_in_halves(ctx: task.OrchestrationContext, _: Any) -> Any:
    handle = RunHandle(ctx)  # type: ignore[arg-type]
    return (yield handle.approval(title="cut \ud83d", details={"draft": "cut \ud83d"}))


def test_what_is_shown_has_whole_characters_and_its_digest_is_that_of_what_is_shown() -> None:
    run = Simulator.of(asks_in_halves)
    _, requested = told(run.start())[-1]
    assert (requested["title"], requested["details"]) == ("cut \ufffd", {"draft": "cut \ufffd"})
    assert requested["digest"] == approval_digest(title=requested["title"], details=requested["details"])
