"""The drive loop on recorded histories: each turn goes through the SDK's executor, twice."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from typing import Any

import pytest
from agent_framework_durabletask import DurableAIAgentOrchestrationContext
from durabletask import task
from durabletask.task import when_all, when_any
from pydantic import BaseModel
from tests.unit.worker.simulator import (
    START,
    Simulator,
    cancel,
    event,
    events,
    ids_of,
    raised,
    resumed,
    suspended,
    terminated,
    told,
)

from towline.contracts import events as told_events
from towline.contracts.durable import ChildAsk, RaisedCommand, RunEnvelope, unwrap_input
from towline.contracts.events import RunCompleted, RunFailed
from towline.worker.errors import AgentRunError, RunCancelled


def greet(ctx: Any, name: str) -> str:
    return f"hello {name}"


def one_step(ctx: task.OrchestrationContext, name: str) -> Any:
    ctx.set_custom_status("asking")
    greeting = yield ctx.call_activity(greet, input=name)
    ctx.set_custom_status("done")
    return {"greeting": greeting}


def test_a_run_is_started_progresses_and_completes_under_deterministic_ids() -> None:
    run = Simulator.of(one_step, run_input="Ann")

    assert ids_of(run.start()) == ["run-1/started", "run-1/progress/1"]
    said = run.turn(run.activity_done("hi Ann"))

    assert ids_of(said)[-1] == "run-1/outcome"
    assert len(set(ids_of(run.said))) == len(run.said)
    outcome = events(said)[-1].data
    assert isinstance(outcome, RunCompleted)
    assert outcome.output == {"greeting": "hi Ann"}
    assert outcome.run_type == "one_step"
    assert outcome.started_at == START
    assert outcome.finished_at > START


def test_the_started_event_carries_session_and_tags() -> None:
    envelope = RunEnvelope(run_id="run-1", run_type="one_step", session_id="s", tags={"team": "a"})
    run = Simulator.of(one_step, run_input="Ann", envelope=envelope)
    assert told(run.start())[0][1] == {
        "run_id": "run-1",
        "run_type": "one_step",
        "session_id": "s",
        "tags": {"team": "a"},
    }


def test_an_instance_without_envelope_runs_natively_and_says_nothing() -> None:
    run = Simulator.of(one_step, run_input="Ann", native=True)
    assert run.start() == []
    assert run.turn(run.activity_done("hi")) == []
    assert run.result == {"greeting": "hi"}


def test_a_child_says_nothing_of_its_lifecycle() -> None:
    envelope = RunEnvelope(run_id="run-1", run_type="one_step", role="child")
    run = Simulator.of(one_step, run_input="Ann", envelope=envelope, instance_id="run-1:0001", parent="run-1")
    assert run.start() == []
    assert run.turn(run.activity_done("hi")) == []


def plain(ctx: Any, value: Any) -> Any:
    return {"got": value}


def empty(ctx: Any, value: Any) -> Any:
    return None
    yield


@pytest.mark.parametrize("code", [plain, empty])
def test_code_that_never_yields_is_a_run_of_one_turn(code: Any) -> None:
    run = Simulator.of(code, run_input=3)
    assert ids_of(run.start()) == ["run-1/started", "run-1/outcome"]
    assert run.status == "completed"


def raises_at_once(ctx: Any, value: Any) -> Any:
    raise ValueError("Email data is required")
    yield


def raises_plainly(ctx: Any, value: Any) -> Any:
    raise TimeoutError("Human approval timed out after 3 second(s).")


@pytest.mark.parametrize(
    ("code", "name", "message"),
    [
        (raises_at_once, "ValueError", "Email data is required"),
        (raises_plainly, "TimeoutError", "Human approval timed out after 3 second(s)."),
    ],
)
def test_an_error_before_the_first_wait_fails_the_run(code: Any, name: str, message: str) -> None:
    run = Simulator.of(code)
    outcome = events(run.start())[-1].data
    assert isinstance(outcome, RunFailed)
    assert (outcome.error.type, outcome.error.message) == (name, message)


def test_an_uncaught_activity_failure_fails_the_run_in_its_own_name() -> None:
    run = Simulator.of(one_step, run_input="Ann")
    run.start()
    outcome = events(run.turn(run.activity_failed(KeyError("no such person"))))[-1].data
    assert isinstance(outcome, RunFailed)
    assert outcome.error.type == "KeyError"
    assert "no such person" in outcome.error.message
    assert outcome.error.details is not None


def guarded(ctx: task.OrchestrationContext, _: Any) -> Any:
    try:
        yield ctx.call_activity(greet, input="x")
    except task.TaskFailedError as error:
        return str(error.details.error_type)


def test_a_caught_activity_failure_reaches_the_code_as_in_the_sdk() -> None:
    run = Simulator.of(guarded)
    run.start()
    run.turn(run.activity_failed(ValueError("no")))
    assert run.result == "builtins.ValueError"


def not_a_task(ctx: Any, _: Any) -> Any:
    yield 5


def test_yielding_something_else_than_a_task_fails_the_run() -> None:
    run = Simulator.of(not_a_task)
    outcome = events(run.start())[-1].data
    assert isinstance(outcome, RunFailed)
    assert outcome.error.type == "TypeError"


@pytest.mark.parametrize("leaving", [SystemExit, asyncio.CancelledError])
def test_code_that_exits_the_process_or_its_task_fails_the_run_instead(leaving: type[BaseException]) -> None:
    def leaves(ctx: Any, _: Any) -> Any:
        raise leaving
        yield

    run = Simulator.of(leaves)
    outcome = events(run.start())[-1].data
    assert isinstance(outcome, RunFailed)
    assert leaving.__name__ in outcome.error.message


def _nested(depth: int) -> list[Any]:
    nested: list[Any] = []
    for _ in range(depth):
        nested = [nested]
    return nested


def measures(ctx: task.OrchestrationContext, _: Any) -> Any:
    ctx.set_custom_status({"loss": float("nan")})
    return (yield ctx.call_activity(greet, input="Ann"))


def test_a_status_that_no_event_can_carry_is_announced_as_such_and_disturbs_no_run() -> None:
    run = Simulator.of(measures)
    assert told(run.start())[-1][1]["status"] == {"not_json": True}
    run.turn(run.activity_done("hi"))
    assert run.result == "hi"


@pytest.mark.parametrize(
    "output", [{"loss": float("nan")}, [float("inf")], _nested(400)], ids=["NaN", "Infinity", "deep"]
)
def test_an_output_that_no_event_can_carry_fails_the_run(output: Any) -> None:
    def returns(ctx: Any, _: Any) -> Any:
        return output
        yield

    run = Simulator.of(returns)
    assert ids_of(run.start()) == ["run-1/started", "run-1/outcome"]
    outcome = events(run.said)[-1].data
    assert isinstance(outcome, RunFailed)
    assert outcome.error.type == "OutputNotJsonError"
    assert len(outcome.error.message) < 300


def fan_out(ctx: task.OrchestrationContext, count: int) -> Any:
    results = yield when_all([ctx.call_activity(greet, input=n) for n in range(count)])
    return results


def test_composite_tasks_wait_for_all() -> None:
    run = Simulator.of(fan_out, run_input=3)
    run.start()
    run.turn(run.activity_done("c", index=2))
    run.turn(run.activity_done("a", index=0))
    run.turn(run.activity_done("b", index=0))
    assert run.result == ["a", "b", "c"]


def race(ctx: task.OrchestrationContext, _: Any) -> Any:
    work = ctx.call_activity(greet, input="x")
    timer = ctx.create_timer(timedelta(minutes=5))
    winner = yield when_any([work, timer])
    if winner is timer:
        return "late"
    timer.cancel()
    return work.get_result()


def test_a_race_is_won_by_whichever_comes_first() -> None:
    run = Simulator.of(race)
    run.start()
    run.turn(run.timer_fired())
    assert run.result == "late"
    run = Simulator.of(race)
    run.start()
    run.turn(run.activity_done("in time"))
    assert run.result == "in time"


PATIENT = task.RetryPolicy(
    first_retry_interval=timedelta(seconds=1), max_number_of_attempts=9, retry_timeout=timedelta(minutes=1)
)


def tries_an_activity(ctx: task.OrchestrationContext, _: Any) -> Any:
    return (yield ctx.call_activity(greet, input="Ann", retry_policy=PATIENT))


def tries_a_child(ctx: task.OrchestrationContext, _: Any) -> Any:
    return (yield ctx.call_sub_orchestrator("one_step", input="Ann", retry_policy=PATIENT))


@pytest.mark.parametrize("code", [tries_an_activity, tries_a_child])
def test_a_retry_timeout_goes_by_the_run_s_time_so_that_a_late_replay_does_the_same(code: Any) -> None:
    # The recorded history is older than the timeout, as it is for a run that is replayed after a crash.
    run = Simulator.of(code)
    run.start()
    failed = run.activity_failed if code is tries_an_activity else run.child_failed
    failure = failed(ConnectionError("away"))
    run.turn(failure)
    run.turn(run.timer_fired())
    run.now += timedelta(minutes=1)
    run.turn(failure)  # of the second attempt, which has the id of the first
    assert run.status == "failed"
    assert run.pending("timer") == []


def compensates(ctx: task.OrchestrationContext, _: Any) -> Any:
    booked = []
    try:
        booked.append((yield ctx.call_activity(greet, input="hotel")))
        yield ctx.call_activity(greet, input="flight")
    except RunCancelled as cancelled:
        ctx.set_custom_status({"undoing": booked, "because": cancelled.reason})
        yield ctx.call_activity(greet, input="undo hotel")
        raise


def test_a_cancelled_run_compensates_undisturbed_and_ends_cancelled() -> None:
    run = Simulator.of(compensates)
    run.start()
    run.turn(run.activity_done("h"))
    said = run.turn(cancel("changed my mind"))
    assert told(said)[0][1]["status"] == {"undoing": ["h"], "because": "changed my mind"}
    assert run.status == "running"
    run.turn(cancel("again"))
    said = run.turn(run.activity_done("undone", index=1))
    assert told(said) == [
        (
            "run-1/outcome",
            {
                "run_id": "run-1",
                "run_type": "compensates",
                "reason": "changed my mind",
                "finished_at": told(said)[0][1]["finished_at"],
            },
        )
    ]
    assert run.failure is not None
    assert run.failure.errorType.endswith(".RunCancelledError")


def swallows(ctx: task.OrchestrationContext, _: Any) -> Any:
    try:
        yield ctx.create_timer(timedelta(days=1))
    except RunCancelled:
        return "anyway"


def catches_errors(ctx: task.OrchestrationContext, _: Any) -> Any:
    try:
        yield ctx.create_timer(timedelta(days=1))
    except Exception:  # noqa: BLE001
        return "swallowed"


@pytest.mark.parametrize("code", [swallows, catches_errors])
def test_a_cancel_is_not_swallowed(code: Any) -> None:
    run = Simulator.of(code)
    run.start()
    said = run.turn(cancel("stop"))
    assert events(said)[-1].data.event_type == "towline.run.cancelled.v1"


def fails_to_undo(ctx: task.OrchestrationContext, _: Any) -> Any:
    try:
        yield ctx.create_timer(timedelta(days=1))
    except RunCancelled:
        raise OSError("could not undo") from None


def test_a_compensation_that_fails_is_told_as_a_failure() -> None:
    run = Simulator.of(fails_to_undo)
    run.start()
    outcome = events(run.turn(cancel()))[-1].data
    assert isinstance(outcome, RunFailed)
    assert outcome.error.type == "OSError"


def test_a_cancel_right_behind_the_request_is_taken_in_the_first_turn() -> None:
    run = Simulator.of(one_step, run_input="Ann")
    said = run.start(cancel("oops"))
    assert ids_of(said) == ["run-1/started", "run-1/progress/1", "run-1/outcome"]
    assert events(said)[-1].data.event_type == "towline.run.cancelled.v1"


def parent(ctx: task.OrchestrationContext, _: Any) -> Any:
    return (yield ctx.call_sub_orchestrator("one_step", input={"a": 1}))


def test_a_child_gets_the_envelope_and_the_parents_cancel() -> None:
    run = Simulator.of(parent)
    run.start()
    created = run.pending("child")[0][1]
    envelope, value = unwrap_input(__import__("json").loads(created.input.value))
    assert envelope is not None
    assert (envelope.role, envelope.run_id, envelope.run_type) == ("child", "run-1", "one_step")
    assert value == {"a": 1}
    run.turn(cancel("no"))
    sent = [action.sendEvent for action in run.actions if action.HasField("sendEvent")]
    assert [(one.instance.instanceId, one.name) for one in sent] == [(created.instanceId, "towline.cancel")]


def test_a_child_that_was_started_by_the_same_turn_is_cancelled_after_it_was_created() -> None:
    run = Simulator.of(parent)
    run.start(cancel("no"))
    kinds = [action.WhichOneof("orchestratorActionType") for action in run.actions]
    assert kinds == ["createSubOrchestration", "sendEvent", "completeOrchestration"]


def test_a_failed_child_fails_the_run_in_its_own_name() -> None:
    run = Simulator.of(parent)
    run.start()
    outcome = events(run.turn(run.child_failed(ValueError("child's trouble"))))[-1].data
    assert isinstance(outcome, RunFailed)
    assert (outcome.error.type, outcome.error.message) == ("ValueError", "child's trouble")


def test_a_terminated_run_is_told_as_cancelled() -> None:
    run = Simulator.of(one_step, run_input="Ann")
    run.start()
    said = run.turn(terminated("ops"))
    assert events(said)[-1].data.event_type == "towline.run.cancelled.v1"
    assert told(said)[-1][1]["reason"] == "ops"


def test_a_suspended_run_goes_on_where_it_was() -> None:
    run = Simulator.of(one_step, run_input="Ann")
    run.start()
    assert run.turn(suspended()) == []
    assert run.turn(run.activity_done("hi")) == []
    assert run.status == "running"
    said = run.turn(resumed())
    assert ids_of(said)[-1] == "run-1/outcome"
    assert run.result == {"greeting": "hi"}


def test_history_of_other_code_ends_in_a_failed_run() -> None:
    run = Simulator.of(one_step, run_input="Ann")
    run.start()
    for past in run.history:
        if past.HasField("taskScheduled"):
            past.taskScheduled.name = "something_else"
    outcome = events(run.turn(raised("anything")))[-1].data
    assert isinstance(outcome, RunFailed)
    assert outcome.error.type == "NonDeterminismError"


def generations(ctx: task.OrchestrationContext, left: int) -> Any:
    ctx.set_custom_status(left)
    item = yield ctx.wait_for_external_event("item")
    if left == 0:
        return item
    ctx.continue_as_new(left - 1, save_events=True)


def test_continue_as_new_keeps_identity_counters_and_unanswered_decisions() -> None:
    run = Simulator.of(generations, run_input=1)
    run.start()
    said = run.turn(event("item", "first", "e1"), event("item", "second", "e2"))
    assert run.status == "continued"
    assert ids_of(said) == ["run-1/approval/item/resolved/e1"]
    envelope, value = unwrap_input(run.result)
    assert envelope is not None
    assert value == 0

    said = run.next_generation()

    assert "run-1/started" not in ids_of(said)
    assert "run-1/approval/item~2/resolved/e2" in ids_of(said)
    assert run.result == "second"
    assert len(set(ids_of(run.said))) == len(ids_of(run.said))
    outcome = events(said)[-1].data
    assert isinstance(outcome, RunCompleted)
    assert outcome.started_at == START


def waits_for_none(ctx: task.OrchestrationContext, names: list[str]) -> Any:
    greetings = yield when_all([ctx.call_activity(greet, input=name) for name in names])
    first = yield when_any([when_all([]), ctx.create_timer(timedelta(hours=1))])
    return [greetings, first.get_result()]


def test_a_wait_for_all_of_nothing_is_over_at_once() -> None:
    run = Simulator.of(waits_for_none, run_input=[])
    run.start()
    assert run.result == [[], []]


def counts_without_waiting(ctx: task.OrchestrationContext, left: int) -> Any:
    if left > 0:
        ctx.continue_as_new(left - 1)
        return None
    return "counted"


def test_code_that_is_no_generator_continues_as_new_too() -> None:
    run = Simulator.of(counts_without_waiting, run_input=1)
    assert ids_of(run.start()) == ["run-1/started"]
    assert run.status == "continued"
    assert ids_of(run.next_generation()) == ["run-1/outcome"]
    assert run.result == "counted"


@pytest.mark.parametrize("name", ["towline.decision", "towline.cancel", "towline.ask"])
@pytest.mark.parametrize("data", [None, "now", {"what": 1}])
def test_mail_of_the_host_s_that_is_none_is_passed_over(name: str, data: Any) -> None:
    run = Simulator.of(generations, run_input=0)
    run.start()
    assert run.turn(raised(name, data)) == []
    run.turn(event("item", "first", "e1"))
    assert run.result == "first"


def foreign(event_name: str, model: type[BaseModel], **fields: Any) -> Any:
    """Mail that nobody has checked: anybody may raise events at the scheduler."""
    return raised(event_name, model.model_construct(**fields).model_dump(mode="json"))


@pytest.mark.parametrize("name", ["", "a\nb", "a" * 257])
def test_mail_that_names_what_can_have_no_name_does_not_cost_the_run_its_outcome(name: str) -> None:
    run = Simulator.of(generations, run_input=0)
    run.start()
    run.turn(
        foreign("towline.decision", RaisedCommand, command_id="d1", kind="decision", name=name),
        foreign("towline.ask", ChildAsk, approval_id=name, instance_id="run-1:0001"),
        foreign("towline.decision", RaisedCommand, command_id="d2", kind="decision", name=name),
        event("item", "first", "e1"),
    )
    assert run.result == "first"
    assert ids_of(run.said)[-1] == "run-1/outcome"


def test_an_instance_that_was_started_as_a_run_that_can_not_be_one_fails_and_says_nothing() -> None:
    run = Simulator.of(generations, run_input={"$towline": {"run_id": "no id", "run_type": "x"}}, native=True)
    assert run.start() == []
    assert run.status == "failed"


def catches(ctx: task.OrchestrationContext, _: Any) -> Any:
    try:
        yield ctx.wait_for_external_event("item")
    except RunCancelled:
        ctx.continue_as_new("again")


def test_a_run_that_is_cancelled_does_not_continue_as_new() -> None:
    run = Simulator.of(catches)
    run.start()
    outcome = events(run.turn(cancel("enough")))[-1].data
    assert isinstance(outcome, told_events.RunCancelled)
    assert outcome.reason == "enough"


def passes_on(ctx: task.OrchestrationContext, value: Any) -> Any:
    return (yield ctx.call_sub_orchestrator("dafx-flow", input=value))


def test_input_that_is_passed_on_to_a_workflow_brings_none_of_its_engine_s_marks() -> None:
    pickled = {"__pickled__": "gASV", "__type__": "os:system"}
    run = Simulator.of(
        passes_on, run_input={"text": "hi", "__subworkflow_input__": pickled, "__subworkflow_address__": {}}
    )
    run.start()
    (action,) = [one for one in run.actions if one.HasField("createSubOrchestration")]
    _, value = unwrap_input(json.loads(action.createSubOrchestration.input.value))
    assert value == {"text": "hi"}


def forgetful(ctx: task.OrchestrationContext, left: int) -> Any:
    yield ctx.wait_for_external_event("go")
    if left == 0:
        return "end"
    ctx.continue_as_new(left - 1)


def test_continue_as_new_without_saving_drops_the_users_events_and_keeps_decisions() -> None:
    run = Simulator.of(forgetful, run_input=1)
    run.start()
    run.turn(event("go", None, "e1"), raised("other", 1), event("go", None, "e2"))
    assert [one.eventRaised.name for one in run.carryover] == ["towline.decision"]
    run.next_generation()
    assert run.result == "end"


def asks_agents(ctx: task.OrchestrationContext, message: str) -> Any:
    agents = DurableAIAgentOrchestrationContext(ctx)
    first, second = agents.get_agent("First"), agents.get_agent("Second")
    answers = yield when_all([first.run(message), second.run(message, options={"temperature": 0})])
    return [answer.text for answer in answers]


def test_agents_are_told_the_run_and_the_turn_and_their_tokens_are_summed() -> None:
    run = Simulator.of(asks_agents, run_input="hi")
    run.start()
    assert [run.agent_request(n)["options"]["towline"]["turn"] for n in (0, 1)] == ["1", "2"]
    assert run.agent_request(0)["options"]["towline"]["run_id"] == "run-1"
    assert run.agent_request(1)["options"]["temperature"] == 0
    used = {"input_token_count": 3, "output_token_count": 4, "total_token_count": 7}
    run.turn(run.agent_answers("two", usage=used, index=1))
    outcome = events(run.turn(run.agent_answers("one", usage=used)))[-1].data
    assert isinstance(outcome, RunCompleted)
    assert outcome.output == ["one", "two"]
    assert outcome.usage is not None
    assert outcome.usage.total_tokens == 14


def test_an_agents_error_is_raised_where_the_run_waits() -> None:
    run = Simulator.of(asks_agents, run_input="hi")
    run.start()
    run.turn(run.agent_answers("one"))
    outcome = events(run.turn(run.agent_answers(error="the model is away")))[-1].data
    assert isinstance(outcome, RunFailed)
    assert outcome.error.type == "AgentRunError"
    assert "the model is away" in outcome.error.message


def tries_another_agent(ctx: task.OrchestrationContext, message: str) -> Any:
    agents = DurableAIAgentOrchestrationContext(ctx)
    try:
        answer = yield agents.get_agent("First").run(message)
    except AgentRunError:
        answer = yield agents.get_agent("Second").run(message)
    return answer.text


def test_an_agents_error_can_be_handled() -> None:
    run = Simulator.of(tries_another_agent, run_input="hi")
    run.start()
    run.turn(run.agent_answers(error="the model is away"))
    assert run.agent_request()["options"]["towline"]["turn"] == "2"
    run.turn(run.agent_answers("from the second"))
    assert run.result == "from the second"


def test_many_statuses_in_one_turn_have_ids_of_their_own() -> None:
    def chatty(ctx: task.OrchestrationContext, _: Any) -> Any:
        for n in range(3):
            if not ctx.is_replaying:
                ctx.set_custom_status(n)
        yield ctx.call_activity(greet, input="x")
        if not ctx.is_replaying:
            ctx.set_custom_status("later")

    run = Simulator.of(chatty)
    run.start()
    run.turn(run.activity_done())
    progress = [one for one in ids_of(run.said) if "/progress/" in one]
    assert len(set(progress)) == 4


def child_with_agent(ctx: task.OrchestrationContext, message: str) -> Any:
    answer = yield DurableAIAgentOrchestrationContext(ctx).get_agent("First").run(message)
    return {"said": answer.text}


def test_a_childs_tokens_count_for_the_run_and_its_output_is_its_own() -> None:
    used = {"input_token_count": 3, "output_token_count": 4}
    envelope = RunEnvelope(run_id="run-1", run_type="child_with_agent", role="child")
    child = Simulator.of(
        child_with_agent, run_input="hi", envelope=envelope, instance_id="run-1:0001", parent="run-1"
    )
    child.start()
    assert child.agent_request()["options"]["towline"]["turn"] == "0001/1"
    child.turn(child.agent_answers("hello", usage=used))

    run = Simulator.of(parent)
    run.start()
    outcome = events(run.turn(run.child_done(child.result)))[-1].data
    assert isinstance(outcome, RunCompleted)
    assert outcome.output == {"said": "hello"}
    assert outcome.usage is not None
    assert outcome.usage.output_tokens == 4


def test_a_cancel_of_a_child_is_its_parents_business_alone() -> None:
    envelope = RunEnvelope(run_id="run-1", run_type="one_step", role="child")
    child = Simulator.of(one_step, envelope=envelope, instance_id="run-1:0001", parent="run-1")
    child.start()
    assert child.turn(cancel("no")) == []
    assert child.failure is not None
    assert child.failure.errorType.endswith("RunCancelledError")
