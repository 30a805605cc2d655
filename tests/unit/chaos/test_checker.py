"""The history checker: a good history passes, and each rule finds the history that breaks it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from tests.chaos.checker import check
from tests.chaos.history import MARK, Effect, History, Record, Sent


def request(run_id: str, run_type: str = "count", run_input: Any = None) -> Sent:
    run_input = run_input or {"steps": 1}
    return Sent(
        mark=f"m-{run_id}",
        topic="runs",
        kind="request",
        event_id=f"e-{run_id}",
        run_id=run_id,
        run_type=run_type,
        input=run_input,
        ends=("run.cancelled",) if run_type == "wait" else ("run.completed",),
    )


def command(run_id: str, kind: Any, event_id: str) -> Sent:
    topic = "approvals" if kind == "decision" else "runs"
    return Sent(mark=f"m-{event_id}", topic=topic, kind=kind, event_id=event_id, run_id=run_id)


def taken(sent: Sent, offset: int = 0) -> Record:
    return Record(topic=sent.topic, partition=0, offset=offset, headers={MARK: sent.mark})


def dead(of: Record) -> Record:
    place = {"topic": of.topic, "partition": str(of.partition), "offset": str(of.offset)}
    headers = {f"towline_dead_letter_{name}": value for name, value in place.items()}
    return Record(topic="dead-letters", partition=0, offset=0, headers={**of.headers, **headers})


def told(run_id: str, kind: str, event_id: str, at: int, **data: Any) -> Record:
    outcome = kind in ("run.completed", "run.failed", "run.cancelled", "run.rejected")
    return Record(
        topic="results" if outcome else "events",
        partition=0,
        offset=at,
        timestamp_ms=at,
        value=json.dumps({"run_id": run_id, **data}).encode(),
        headers={"ce_id": f"{run_id}/{event_id}", "ce_type": f"towline.{kind}.v1"},
    )


def started(run_id: str, at: int = 1) -> Record:
    return told(run_id, "run.started", "started", at)


def completed(run_id: str, at: int, **output: Any) -> Record:
    return told(run_id, "run.completed", "outcome", at, output=output)


def cancelled(run_id: str, at: int) -> Record:
    return told(run_id, "run.cancelled", "outcome", at)


def asked(run_id: str, at: int) -> Record:
    return told(run_id, "approval.requested", "approval/a/requested", at, approval_id="a")


def answered(run_id: str, kind: str, by: str, at: int) -> Record:
    verb = kind.partition(".")[2]
    return told(run_id, kind, f"approval/a/{verb}/{by}", at, approval_id="a")


def control_refused(run_id: str, by: str, at: int) -> Record:
    return told(run_id, "control.refused", f"control/cancel/refused/{by}", at)


GARBAGE = Sent(mark="m-x", topic="runs", kind="garbage")
COUNT = request("count")
REVIEW = request("review", "review", {"approved": True})
WAIT = request("wait", "wait", {})
YES, TOO_LATE = command("review", "decision", "yes"), command("review", "decision", "late")
STOP, STOP_AGAIN = command("wait", "cancel", "stop"), command("wait", "cancel", "again")
STRANGER = command("nobody", "decision", "stranger")
SENT = (COUNT, REVIEW, WAIT, YES, TOO_LATE, STOP, STOP_AGAIN, STRANGER, GARBAGE)
TAKEN = tuple(taken(sent, offset) for offset, sent in enumerate(SENT))

GOOD = History(
    sent=SENT,
    taken=TAKEN,
    published=(
        started("count"),
        completed("count", 3, total=0, used=["t1"]),
        started("review"),
        asked("review", 2),
        answered("review", "approval.resolved", "yes", 3),
        completed("review", 4, approved=True, used=["t2", "t3"]),
        answered("review", "approval.refused", "late", 5),
        started("wait"),
        cancelled("wait", 6),
        control_refused("wait", "again", 7),
        answered("nobody", "approval.refused", "stranger", 8),
    ),
    dead=(dead(TAKEN[-1]),),
    effects=(
        Effect(run_id="count", step="step-0", token="t0"),
        Effect(run_id="count", step="step-0", token="t1"),
        Effect(run_id="review", step="draft", token="t2"),
        Effect(run_id="review", step="publish", token="t3"),
    ),
)


def without(event_id: str) -> History:
    kept = tuple(record for record in GOOD.published if record.id != event_id)
    assert len(kept) == len(GOOD.published) - 1
    return replace(GOOD, published=kept)


def instead(*records: Record) -> History:
    """Each record in place of the one of its id."""
    by_id = {record.id: record for record in records}
    assert by_id.keys() <= {record.id for record in GOOD.published}
    return replace(GOOD, published=tuple(by_id.get(record.id, record) for record in GOOD.published))


def more(*records: Record) -> History:
    return replace(GOOD, published=(*GOOD.published, *records))


def rules(history: History) -> set[str]:
    return {violation.rule for violation in check(history).violations}


def test_a_good_history_has_no_violations() -> None:
    verdict = check(GOOD)

    assert verdict.violations == ()
    counted = [verdict.counts[name] for name in ("sent", "handled", "dead-lettered", "rejected")]
    assert counted == [len(SENT), len(SENT) - 1, 1, 0]
    assert verdict.counts["effects repeated"] == 1


def test_repeats_after_a_crash_do_no_harm() -> None:
    late = tuple(replace(record, offset=100, timestamp_ms=100) for record in GOOD.published)

    verdict = check(more(*late))

    assert verdict.violations == ()
    assert verdict.counts["repeats"] == len(GOOD.published)


def test_a_cancel_before_the_first_turn_is_legal() -> None:
    assert rules(without("wait/started")) == set()


def test_a_send_without_acknowledgement_may_be_missing() -> None:
    unsure = replace(GARBAGE, acknowledged=False)

    assert rules(replace(GOOD, sent=(*SENT[:-1], unsure), taken=TAKEN[:-1], dead=())) == set()


def test_the_answer_to_a_suspend_may_come_after_the_end_but_only_once() -> None:
    suspend = command("count", "suspend", "pause")
    done = told("count", "run.progressed", "control/suspend/done/pause", 9)
    sent = replace(GOOD, sent=(*SENT, suspend), taken=(*TAKEN, taken(suspend, 99)))
    once = replace(sent, published=(*GOOD.published, done))
    assert rules(sent) == {"no_answer"}
    assert rules(once) == set()
    refused = told("count", "control.refused", "control/suspend/refused/pause", 10)
    assert rules(replace(once, published=(*once.published, refused))) == {"two_answers"}


APPROVED_EARLY = answered("review", "approval.resolved", "yes", 2)
NOT_CANCELLED = told("wait", "run.completed", "outcome", 6, output={"used": []})
TWICE: Any = {"approved": True, "used": ["t2", "t2"]}
BAD = {
    "kafka lost a request": (replace(GOOD, taken=TAKEN[1:]), "kafka_lost"),
    "garbage vanished": (replace(GOOD, dead=()), "vanished"),
    "a good event was put aside": (replace(GOOD, dead=(*GOOD.dead, dead(TAKEN[3]))), "not_trusted"),
    "a record that nobody sent": (replace(GOOD, sent=SENT[:-1]), "no_request"),
    "no outcome": (without("count/outcome"), "no_outcome"),
    "a second outcome": (more(told("count", "run.failed", "failure", 9)), "two_outcomes"),
    "an outcome without request": (more(completed("ghost", 9)), "no_request"),
    "a run starts that was only named": (more(started("nobody", 9)), "no_request"),
    "an id with another type": (more(told("count", "run.failed", "outcome", 9)), "repeat_differs"),
    "never started": (without("count/started"), "order"),
    "started after its outcome": (instead(started("count", 9)), "order"),
    "progress after the outcome": (more(told("count", "run.progressed", "progress/1", 9)), "order"),
    "asked after the outcome": (instead(asked("review", 9)), "order"),
    "resolved before it was asked": (instead(asked("review", 3), APPROVED_EARLY), "order"),
    "resolved twice": (more(answered("review", "approval.resolved", "late", 3)), "order"),
    "a decision without answer": (without("review/approval/a/refused/late"), "no_answer"),
    "a stranger without answer": (without("nobody/approval/a/refused/stranger"), "no_answer"),
    "a decision with two answers": (more(answered("review", "approval.refused", "yes", 9)), "two_answers"),
    "a cancel neither done nor refused": (instead(NOT_CANCELLED), "no_answer"),
    "a cancel done and refused": (more(control_refused("wait", "stop", 9)), "two_answers"),
    "failed over a kill": (instead(told("count", "run.failed", "outcome", 3)), "unexpected_outcome"),
    "an output that does not follow": (instead(completed("count", 3, total=7, used=["t1"])), "wrong_output"),
    "a result left out": (instead(completed("count", 3, total=0, used=[])), "wrong_output"),
    "a result used twice": (instead(completed("review", 4, **TWICE)), "result_reused"),
    "a result from nowhere": (instead(completed("count", 3, total=0, used=["t9"])), "foreign_result"),
    "an effect lost": (replace(GOOD, effects=GOOD.effects[2:]), "no_effect"),
}  # fmt: skip


@pytest.mark.parametrize(("history", "rule"), BAD.values(), ids=BAD.keys())
def test_a_bad_history_is_found_out(history: History, rule: str) -> None:
    assert rule in rules(history)
