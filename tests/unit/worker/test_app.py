"""`towline.worker.App`: what its decorators make of plain functions."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from datetime import timedelta
from typing import Any

import pytest
from durabletask.task import TaskCancelledError
from pydantic import BaseModel, Field
from tests.unit.worker.simulator import (
    Simulator,
    cancel,
    decision,
    event,
    events,
    ids_of,
    make_worker,
    raises_on,
    told,
)

from towline.contracts.canonical import approval_digest
from towline.contracts.durable import RunEnvelope
from towline.contracts.events import RunFailed
from towline.worker import (
    AgentRetry,
    App,
    ApprovalDecision,
    ApprovalExpired,
    RunCancelled,
    RunHandle,
    Steps,
)

APPROVAL = "run-1/approval/approval"


class Request(BaseModel):
    topic: str
    attempts: int = Field(default=3, ge=1)


class Article(BaseModel):
    title: str
    words: int = 0


app = App("reviews")


@app.activity
def write(topic: str) -> Article:
    return Article(title=topic)


@app.activity
async def count_words(article: Article) -> int:
    return len(article.title.split())


@app.orchestration(approvers=["ann", "bob"])
def review(run: RunHandle, request: Request) -> Steps[Article]:
    """Write an article and have it approved.

    More text.
    """
    article = yield run.activity(write, request.topic)
    run.status(article)
    decision: ApprovalDecision = yield run.approval(
        title="Publish?", details=article, timeout=timedelta(hours=72)
    )
    if not decision.approved:
        raise RuntimeError(f"rejected: {decision.feedback}")
    return article


@app.orchestration
def two_of_three(run: RunHandle) -> Steps[list[str | None]]:
    decision = yield run.approval(title="Pay?", approvers=["ann", "bob", "eve"], quorum=2)
    return [vote.approver for vote in decision.votes]


@app.orchestration
def escalating(run: RunHandle) -> Steps[Any]:
    try:
        decision = yield run.approval(
            title="Pay?",
            approvers=["ann"],
            timeout=timedelta(hours=2),
            escalate_after=timedelta(hours=1),
            escalate_to=["boss"],
        )
    except ApprovalExpired as expired:
        return f"expired: {expired.approval_id}"
    return decision.approver


@app.orchestration
def talks(run: RunHandle, message: str) -> Steps[str]:
    answer = yield run.agent(
        "Writer", message, retry=AgentRetry(attempts=3, first_delay=timedelta(seconds=1))
    )
    return answer.text


@app.activity
def undo() -> None: ...


@app.orchestration
def talks_and_undoes(run: RunHandle, message: str) -> Steps[str]:
    answer = run.agent("Writer", message, retry=AgentRetry(attempts=3, first_delay=timedelta(seconds=1)))
    try:
        return (yield answer).text
    except RunCancelled:
        yield run.activity(undo)
        yield run.activity(undo)
        raise


@app.orchestration(name="waits.for.article")
def waits(run: RunHandle) -> Steps[Any]:
    article = yield run.event("article", Article)
    return article


@app.orchestration
def parent(run: RunHandle) -> Steps[Any]:
    return (yield run.child(waits))


@app.orchestration
def at_once(run: RunHandle, value: int) -> int:
    return value + 1


def outcomes_of(run: Simulator) -> dict[str, str]:
    return {data["approval_id"]: data["outcome"] for _, data in told(run.said) if "outcome" in data}


def start(name: str, value: Any = None, **options: Any) -> Simulator:
    worker = make_worker()
    app(worker)
    return Simulator.of(worker=worker, name=name, run_input=value, **options)


def test_the_catalog_entry_has_schema_description_and_approvers() -> None:
    entry = next(each for each in app.run_types if each.name == "review")
    assert entry.description == "Write an article and have it approved."
    assert entry.approvers == ["ann", "bob"]
    assert entry.input_schema is not None
    assert entry.input_schema["required"] == ["topic"]
    assert next(each for each in app.run_types if each.name == "two_of_three").input_schema is None


def test_a_review_is_written_approved_and_returned_as_json() -> None:
    run = start("review", {"topic": "tides"})
    run.start()
    said = run.turn(run.activity_done({"title": "Tides", "words": 3}))
    details = {"title": "Tides", "words": 3}
    assert told(said)[0][1]["status"] == details
    requested = told(said)[1]
    assert requested[0] == f"{APPROVAL}/requested"
    assert requested[1]["title"] == "Publish?"
    assert requested[1]["details"] == details
    assert requested[1]["approvers"] == ["ann", "bob"]
    assert requested[1]["digest"] == approval_digest(title="Publish?", details=details)
    assert requested[1]["expires_at"] == "2026-11-27T12:00:00Z"

    said = run.turn(decision("approval", approver="eve", command_id="d1"))
    assert told(said)[0][1]["reason"] == "not_authorized"
    run.turn(decision("approval", approver="ann", command_id="d2"))
    assert run.result == details


def test_input_that_does_not_fit_fails_the_run_with_the_validation_error() -> None:
    run = start("review", {"topic": "tides", "attempts": 0})
    outcome = events(run.start())[-1].data
    assert outcome.error.type == "ValidationError"  # type: ignore[attr-defined]
    assert "attempts" in outcome.error.message  # type: ignore[attr-defined]


def test_an_approval_that_nobody_decides_expires() -> None:
    run = start("review", {"topic": "tides"})
    run.start()
    run.turn(run.activity_done({"title": "Tides"}))
    said = run.turn(run.timer_fired())
    assert told(said)[0][1]["outcome"] == "expired"
    assert events(said)[-1].data.error.type == "ApprovalExpired"  # type: ignore[attr-defined]


def test_a_decided_approval_leaves_no_timer_behind() -> None:
    run = start("review", {"topic": "tides"})
    run.start(decision("approval", approver="ann"))
    run.turn(run.activity_done({"title": "Tides"}))
    assert run.status == "completed"
    assert run.pending("timer") == []


def test_a_quorum_waits_for_different_approvers() -> None:
    run = start("two_of_three")
    run.start()
    assert run.turn(decision("approval", approver="ann", command_id="1")) == []
    said = run.turn(decision("approval", approver="ann", command_id="2"))
    assert told(said)[0][1]["reason"] == "already_resolved"
    said = run.turn(decision("approval", approver="eve", command_id="3"))
    assert ids_of(said)[:2] == [f"{APPROVAL}/resolved/1", f"{APPROVAL}/resolved/3"]
    assert run.result == ["ann", "eve"]


def test_escalation_announces_and_admits_further_approvers() -> None:
    run = start("escalating")
    run.start()
    assert told(run.turn(decision("approval", approver="boss", command_id="1")))[0][1]["reason"] == (
        "not_authorized"
    )
    said = run.turn(run.timer_fired(index=1))
    assert told(said)[0] == (
        f"{APPROVAL}/requested/escalated",
        {**told(run.said)[1][1], "approvers": ["ann", "boss"]},
    )
    run.turn(decision("approval", approver="boss", command_id="2"))
    assert run.result == "boss"


def test_an_expired_approval_can_be_handled() -> None:
    run = start("escalating")
    run.start()
    run.turn(run.timer_fired(index=1))
    run.turn(run.timer_fired())
    assert run.result == "expired: approval"


def test_an_agent_is_tried_again_for_the_same_turn_in_a_new_conversation() -> None:
    run = start("talks", "hi")
    run.start()
    first = run.pending("agent")[0][1].targetInstanceId.value
    run.turn(run.agent_answers(error="away"))
    run.turn(run.timer_fired())
    assert run.agent_request()["options"]["towline"]["turn"] == "1"
    assert run.pending("agent")[0][1].targetInstanceId.value != first
    run.turn(run.agent_answers("hello"))
    assert run.result == "hello"


def test_an_agent_that_keeps_failing_fails_the_run() -> None:
    run = start("talks", "hi")
    run.start()
    for _ in range(2):
        run.turn(run.agent_answers(error="away"))
        run.turn(run.timer_fired())
    outcome = events(run.turn(run.agent_answers(error="away")))[-1].data
    assert outcome.error.type == "AgentRunError"  # type: ignore[attr-defined]


def test_an_event_is_validated() -> None:
    run = start("waits.for.article")
    run.start()
    run.turn(event("article", {"title": "x"}))
    assert run.result == {"title": "x", "words": 0}
    run = start("waits.for.article")
    run.start()
    outcome = events(run.turn(event("article", {"words": 1})))[-1].data
    assert outcome.error.type == "ValidationError"  # type: ignore[attr-defined]


def test_a_child_is_started_under_its_registered_name() -> None:
    run = start("parent")
    run.start()
    assert run.pending("child")[0][1].name == "waits.for.article"


def test_an_orchestration_without_waiting_is_a_run() -> None:
    run = start("at_once", 4)
    assert ids_of(run.start()) == ["run-1/started", "run-1/outcome"]
    assert run.result == 5


def test_an_async_activity_is_carried_out() -> None:
    worker = make_worker()
    app(worker)
    activity = worker._registry.activities["count_words"]
    assert activity(None, {"title": "one two"}) == 2


def test_names_must_be_unique() -> None:
    with pytest.raises(ValueError, match="at_once"):
        app.orchestration(at_once)
    with pytest.raises(ValueError, match="write"):
        app.activity(write)
    with pytest.raises(ValueError, match="name"):
        app.agent(object())


def test_a_childs_votes_are_told_to_the_root_as_answered_also_when_the_ask_expires() -> None:
    worker = make_worker()
    app(worker)
    envelope = RunEnvelope(run_id="run-1", run_type="two_of_three", role="child")
    child = Simulator.of(
        worker=worker, name="two_of_three", envelope=envelope, instance_id="run-1:0001", parent="run-1"
    )
    child.start()
    child.turn(decision("0001~approval", approver="ann", command_id="v1"))
    said = child.turn(cancel("no"))
    assert ids_of(said) == [
        "run-1/approval/0001~approval/resolved/v1",
        "run-1/approval/0001~approval/resolved",
    ]
    [notice] = raises_on(said)
    assert notice.data["answered"] == ["v1"]


@pytest.mark.parametrize("fails", ["before the cancel", "after it"])
def test_a_cancelled_run_tries_no_agent_again(fails: str) -> None:
    run = start("talks_and_undoes", "hi")
    run.start()
    failed = run.agent_answers(error="overloaded")
    run.turn(*([failed, cancel("stop")] if fails == "before the cancel" else [cancel("stop"), failed]))
    run.turn(run.activity_done())
    if run.pending("timer"):
        run.turn(run.timer_fired())
    assert not run.pending("agent")
    run.turn(run.activity_done())
    assert told(run.said)[-1][1]["reason"] == "stop"


def test_a_retry_goes_on_for_as_many_attempts_as_it_is_told() -> None:
    retry = AgentRetry(attempts=5_000, longest_delay=timedelta(minutes=1))
    assert retry.delay(4_999, "1") == timedelta(minutes=1)


async def waits_by_await(run: Any, value: Any) -> None: ...


async def yields_and_awaits(run: Any, value: Any) -> AsyncGenerator[None]:
    yield


@pytest.mark.parametrize("code", [waits_by_await, yields_and_awaits])
def test_an_orchestration_that_is_async_is_refused_with_what_to_write_instead(code: Any) -> None:
    with pytest.raises(TypeError, match=f"{code.__name__} is an async function: write `def`, and `yield`"):
        App("tests").orchestration(code)


@pytest.mark.parametrize("code", [waits_by_await, yields_and_awaits])
def test_a_plain_module_s_async_orchestration_fails_its_run_with_what_to_write_instead(code: Any) -> None:
    outcome = events(Simulator.of(code).start())[-1].data
    assert isinstance(outcome, RunFailed)
    assert "is an async function: write `def`, and `yield`" in outcome.error.message


def test_approvers_that_are_one_text_are_refused_and_not_taken_letter_by_letter() -> None:
    with pytest.raises(TypeError, match=r"approvers: 'ann' is one text: give a list, \['ann'\]"):
        App("tests").orchestration(approvers="ann")


@app.orchestration
def escalates_to_a_text(run: RunHandle) -> Steps[Any]:
    yield run.approval(title="Go?", escalate_after=timedelta(hours=1), escalate_to="boss")


@app.orchestration
def asks_a_text(run: RunHandle) -> Steps[Any]:
    yield run.approval(title="Go?", approvers="ann")


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("asks_a_text", "approvers: 'ann' is one text"),
        ("escalates_to_a_text", "escalate_to: 'boss' is one text"),
    ],
)
def test_an_approval_for_people_that_are_one_text_fails_its_run(name: str, problem: str) -> None:
    outcome = events(start(name).start())[-1].data
    assert isinstance(outcome, RunFailed)
    assert problem in outcome.error.message


@app.orchestration
def cancels_the_loser(run: RunHandle) -> Steps[Any]:
    words, numbers = run.event("word", str), run.event("number", int)
    won = yield run.any([words, numbers])
    assert won is words
    assert numbers.cancel()
    assert not words.cancel()
    try:
        yield numbers
    except TaskCancelledError:
        return (yield run.event("number", int))


def test_a_typed_wait_that_lost_can_be_cancelled_and_the_next_of_its_name_gets_what_comes() -> None:
    run = start("cancels_the_loser")
    run.start()
    run.turn(event("word", "first", "e1"))
    run.turn(event("number", 2, "e2"))
    assert run.result == 2
    assert outcomes_of(run) == {"word": "approved", "number": "cancelled", "number~2": "approved"}


@app.orchestration
def speaks_in(run: RunHandle, session: str) -> Steps[Any]:
    yield run.agent("Writer", "hi", session=session)


@pytest.mark.parametrize("session", ["", "ann@example.org"])
def test_a_session_that_can_be_none_fails_the_run_and_is_named(session: str) -> None:
    outcome = events(start("speaks_in", session).start())[-1].data
    assert isinstance(outcome, RunFailed)
    assert outcome.error.message == (
        f"session {session!r} of agent Writer: give it a text without @ that is not empty"
    )
