"""Orchestrations: starting, generations, children, ending."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from durabletask import client, task
from durabletask.client import OrchestrationStatus
from durabletask.internal import orchestrator_service_pb2 as pb
from tests.conformance.hand_worker import complete
from tests.conformance.hubs import Hub
from tests.conformance.support import unique
from tests.waiting import eventually

Turns = Any  # what an orchestrator generator yields is the SDK's business


def finished(state: client.OrchestrationState | None) -> client.OrchestrationState:
    assert state is not None
    return state


def tell_time(ctx: task.OrchestrationContext, _: object) -> str:
    return ctx.current_utc_datetime.isoformat()


@pytest.mark.acceptance(1)
def test_a_scheduled_start_does_not_run_early(hub: Hub) -> None:
    hub.worker(orchestrators=[tell_time])
    sdk = hub.client()
    due = datetime.now(UTC) + timedelta(seconds=2)
    instance = sdk.schedule_new_orchestration(tell_time, start_at=due)

    waiting = finished(sdk.get_orchestration_state(instance))
    ended = finished(sdk.wait_for_orchestration_completion(instance, timeout=15))

    assert waiting.runtime_status == OrchestrationStatus.PENDING
    assert datetime.now(UTC) >= due
    assert datetime.fromisoformat(ended.get_output(str)).replace(tzinfo=UTC) >= due


@pytest.mark.acceptance(5)
def test_a_timer_of_an_earlier_generation_is_dropped(hub: Hub) -> None:
    def twice(ctx: task.OrchestrationContext, generation: int) -> Turns:
        if generation == 0:
            ctx.create_timer(timedelta(seconds=1))
            yield ctx.call_activity(nothing)
            ctx.continue_as_new(1)
            return None
        began = ctx.current_utc_datetime
        yield ctx.create_timer(timedelta(seconds=2.5))
        return (ctx.current_utc_datetime - began).total_seconds()

    hub.worker(orchestrators=[twice], activities=[nothing])
    sdk = hub.client()
    instance = sdk.schedule_new_orchestration(twice, input=0)

    ended = finished(sdk.wait_for_orchestration_completion(instance, timeout=15))

    assert ended.runtime_status == OrchestrationStatus.COMPLETED
    assert ended.get_output(float) >= 2.5


def nothing(_: task.ActivityContext, __: object) -> None:
    return None


@pytest.mark.acceptance(6)
def test_an_activity_result_of_an_earlier_generation_is_dropped(hub: Hub) -> None:
    new_began, old_ended = threading.Event(), threading.Event()

    def slow(_: task.ActivityContext, generation: str) -> str:
        if generation == "old":
            new_began.wait(15)
            old_ended.set()
        else:
            new_began.set()
            old_ended.wait(15)
            threading.Event().wait(0.5)  # the old result has reached the server by now
        return generation

    def replace(ctx: task.OrchestrationContext, generation: str) -> Turns:
        result = ctx.call_activity(slow, input=generation)
        if generation == "old":
            yield ctx.wait_for_external_event("go")
            ctx.continue_as_new("new")
            return None
        return (yield result)

    hub.worker(orchestrators=[replace], activities=[slow])
    sdk = hub.client()
    instance = sdk.schedule_new_orchestration(replace, input="old")
    sdk.raise_orchestration_event(instance, "go")

    ended = finished(sdk.wait_for_orchestration_completion(instance, timeout=20))

    assert ended.get_output(str) == "new"


@pytest.mark.acceptance(7)
def test_a_custom_status_survives_continue_as_new(hub: Hub) -> None:
    def report(ctx: task.OrchestrationContext, generation: int) -> Turns:
        if generation == 0:
            ctx.set_custom_status("kept")
            yield ctx.call_activity(nothing)
            ctx.continue_as_new(1)
            return
        yield ctx.call_activity(nothing)
        second.set()  # the first turn of this generation is committed
        yield ctx.wait_for_external_event("end")

    second = threading.Event()
    hub.worker(orchestrators=[report], activities=[nothing])
    sdk = hub.client()
    instance = sdk.schedule_new_orchestration(report, input=0)
    assert second.wait(10)

    seen = finished(sdk.get_orchestration_state(instance))
    sdk.raise_orchestration_event(instance, "end")
    finished(sdk.wait_for_orchestration_completion(instance, timeout=10))

    assert seen.get_custom_status(str) == "kept"


def waits(ctx: task.OrchestrationContext, _: object) -> Turns:
    return (yield ctx.wait_for_external_event("end"))


def parent_of_waiting(ctx: task.OrchestrationContext, child: str) -> Turns:
    return (yield ctx.call_sub_orchestrator(waits, instance_id=child))


@pytest.mark.acceptance(9)
def test_a_recursive_terminate_reaches_a_child(hub: Hub) -> None:
    hub.worker(orchestrators=[parent_of_waiting, waits])
    sdk = hub.client()
    child = unique("child")
    parent = sdk.schedule_new_orchestration(parent_of_waiting, input=child)
    eventually(lambda: sdk.get_orchestration_state(child))

    sdk.terminate_orchestration(parent, recursive=True)
    ended = [finished(sdk.wait_for_orchestration_completion(i, timeout=10)) for i in (parent, child)]

    assert [state.runtime_status for state in ended] == [OrchestrationStatus.TERMINATED] * 2


@pytest.mark.acceptance(10)
def test_a_recursive_purge_reaches_a_child(hub: Hub) -> None:
    hub.worker(orchestrators=[parent_of_waiting, waits])
    sdk = hub.client()
    child = unique("child")
    parent = sdk.schedule_new_orchestration(parent_of_waiting, input=child)
    eventually(lambda: sdk.get_orchestration_state(child))
    sdk.raise_orchestration_event(child, "end")
    finished(sdk.wait_for_orchestration_completion(parent, timeout=10))

    purged = sdk.purge_orchestration(parent, recursive=True)

    assert purged.deleted_instance_count == 2
    assert sdk.get_orchestration_state(child) is None


@pytest.mark.acceptance(11)
def test_a_child_failure_keeps_its_error_type(hub: Hub) -> None:
    def child(_: task.OrchestrationContext, __: object) -> None:
        raise LookupError("not here")

    def parent(ctx: task.OrchestrationContext, _: object) -> Turns:
        try:
            yield ctx.call_sub_orchestrator(child)
        except task.TaskFailedError as failure:
            return [failure.details.error_type, failure.details.message]
        return None

    hub.worker(orchestrators=[parent, child])
    sdk = hub.client()
    instance = sdk.schedule_new_orchestration(parent)

    error_type, message = finished(sdk.wait_for_orchestration_completion(instance, timeout=10)).get_output(
        list
    )

    assert error_type.endswith("LookupError")
    assert "not here" in message


@pytest.mark.acceptance(12)
def test_thirty_concurrent_completion_waiters_are_all_served(hub: Hub) -> None:
    hub.worker(orchestrators=[waits])
    sdk = hub.client()
    instances = [sdk.schedule_new_orchestration(waits) for _ in range(30)]

    with ThreadPoolExecutor(30) as pool:
        waiting = [pool.submit(sdk.wait_for_orchestration_completion, i, timeout=20) for i in instances]
        other = hub.client()
        for instance in instances:
            other.raise_orchestration_event(instance, "end", data=instance)
        results = [finished(wait.result(30)).get_output(str) for wait in waiting]

    assert results == instances


@pytest.mark.acceptance(18)
def test_the_state_shows_version_tags_execution_and_completed_time(hub: Hub) -> None:
    hub.worker(orchestrators=[tell_time])
    sdk = hub.client()
    instance = sdk.schedule_new_orchestration(tell_time, version="2.1", tags={"tenant": "a"})
    finished(sdk.wait_for_orchestration_completion(instance, timeout=10))

    state = hub.stub().GetInstance(pb.GetInstanceRequest(instanceId=instance), timeout=5).orchestrationState

    assert state.version.value == "2.1"
    assert dict(state.tags) == {"tenant": "a"}
    assert state.executionId.value
    assert state.completedTimestamp.ToDatetime() >= state.createdTimestamp.ToDatetime() > datetime(2020, 1, 1)


@pytest.mark.acceptance(23)
def test_a_batch_of_instances_is_purged(hub: Hub) -> None:
    hub.worker(orchestrators=[tell_time])
    sdk = hub.client()
    instances = [sdk.schedule_new_orchestration(tell_time) for _ in range(3)]
    for instance in instances:
        finished(sdk.wait_for_orchestration_completion(instance, timeout=10))

    answer = hub.stub().PurgeInstances(
        pb.PurgeInstancesRequest(instanceBatch=pb.InstanceBatch(instanceIds=instances[:2])), timeout=5
    )

    assert answer.deletedInstanceCount == 2
    assert [sdk.get_orchestration_state(i) is None for i in instances] == [True, True, False]


@pytest.mark.acceptance(24)
def test_an_exception_with_an_empty_message_is_a_failure(hub: Hub) -> None:
    def fails(_: task.ActivityContext, __: object) -> None:
        raise ValueError

    def run(ctx: task.OrchestrationContext, _: object) -> Turns:
        yield ctx.call_activity(fails)

    hub.worker(orchestrators=[run], activities=[fails])
    sdk = hub.client()
    instance = sdk.schedule_new_orchestration(run)

    ended = finished(sdk.wait_for_orchestration_completion(instance, timeout=10))

    assert ended.runtime_status == OrchestrationStatus.FAILED
    assert ended.failure_details is not None


@pytest.mark.acceptance(25)
def test_events_before_start_and_while_suspended_are_kept_and_names_ignore_case(hub: Hub) -> None:
    def two_events(ctx: task.OrchestrationContext, _: object) -> Turns:
        first = yield ctx.wait_for_external_event("Approval")
        second = yield ctx.wait_for_external_event("approval")
        return [first, second]

    sdk = hub.client()
    instance = sdk.schedule_new_orchestration(two_events)
    sdk.raise_orchestration_event(instance, "APPROVAL", data=1)
    worker = hub.worker(orchestrators=[two_events])
    finished(sdk.wait_for_orchestration_start(instance, timeout=10))
    sdk.suspend_orchestration(instance)
    sdk.raise_orchestration_event(instance, "aPPROVAL", data=2)
    with pytest.raises(TimeoutError):
        sdk.wait_for_orchestration_completion(instance, timeout=1)
    suspended = finished(sdk.get_orchestration_state(instance))
    sdk.resume_orchestration(instance)

    ended = finished(sdk.wait_for_orchestration_completion(instance, timeout=10))
    worker.stop()

    assert suspended.runtime_status == OrchestrationStatus.SUSPENDED
    assert ended.get_output(list) == [1, 2]


def test_an_instance_that_nobody_serves_can_be_terminated(hub: Hub) -> None:
    sdk = hub.client()
    instance = sdk.schedule_new_orchestration("nobody_serves_this")
    sdk.terminate_orchestration(instance, output="enough")

    ended = finished(sdk.wait_for_orchestration_completion(instance, timeout=5))

    assert ended.runtime_status == OrchestrationStatus.TERMINATED
    assert ended.get_output(str) == "enough"


def test_a_child_whose_id_is_live_fails_its_parent_and_is_left_alone(hub: Hub) -> None:
    hub.worker(orchestrators=[parent_of_waiting, waits])
    sdk = hub.client()
    taken = sdk.schedule_new_orchestration(waits)
    finished(sdk.wait_for_orchestration_start(taken, timeout=10))

    parent = sdk.schedule_new_orchestration(parent_of_waiting, input=taken)
    ended = finished(sdk.wait_for_orchestration_completion(parent, timeout=10))
    sdk.raise_orchestration_event(taken, "end", data="mine")

    assert ended.runtime_status == OrchestrationStatus.FAILED
    assert finished(sdk.wait_for_orchestration_completion(taken, timeout=10)).get_output(str) == "mine"


def test_a_replaced_run_leaves_nothing_behind_in_its_successor(hub: Hub) -> None:
    """The timer of the replaced execution must not fire into the one that took its id."""

    def sleeps(ctx: task.OrchestrationContext, seconds: float) -> Turns:
        began = ctx.current_utc_datetime
        yield ctx.create_timer(timedelta(seconds=seconds))
        return (ctx.current_utc_datetime - began).total_seconds()

    hub.worker(orchestrators=[sleeps])
    sdk = hub.client()
    instance = sdk.schedule_new_orchestration(sleeps, input=1.0, instance_id=unique("run"))
    finished(sdk.wait_for_orchestration_start(instance, timeout=10))
    policy = pb.OrchestrationIdReusePolicy(replaceableStatus=[pb.ORCHESTRATION_STATUS_RUNNING])
    sdk.schedule_new_orchestration(sleeps, input=2.5, instance_id=instance, reuse_id_policy=policy)

    ended = finished(sdk.wait_for_orchestration_completion(instance, timeout=15))

    assert ended.get_output(float) >= 2.5


def execution_started(turn: pb.WorkItem) -> pb.ExecutionStartedEvent:
    events = turn.orchestratorRequest.newEvents
    return next(event.executionStarted for event in events if event.HasField("executionStarted"))


@pytest.mark.acceptance(2)
def test_traces_tags_and_parents_travel_down_and_every_event_has_a_time(hub: Hub) -> None:
    hand = hub.hand_worker()
    span = "00f067aa0ba902b7"
    trace = pb.TraceContext(traceParent=f"00-4bf92f3577b34da6a3ce929d0e0e4736-{span}-01", spanID=span)
    instance = unique("traced")
    hand.stub.StartInstance(
        pb.CreateInstanceRequest(instanceId=instance, name="traced", parentTraceContext=trace), timeout=5
    )

    turn = hand.next("orchestratorRequest")
    started = next(
        e.executionStarted for e in turn.orchestratorRequest.newEvents if e.HasField("executionStarted")
    )
    child_id = unique("child")
    hand.answer_turn(
        turn,
        pb.OrchestratorAction(
            id=1,
            scheduleTask=pb.ScheduleTaskAction(name="act", parentTraceContext=trace, tags={"cost": "low"}),
        ),
        pb.OrchestratorAction(
            id=2,
            createSubOrchestration=pb.CreateSubOrchestrationAction(
                instanceId=child_id, name="child", parentTraceContext=trace, tags={"from": "parent"}
            ),
        ),
        trace=pb.OrchestrationTraceContext(spanID={"value": "1111111111111111"}),
    )
    items = [hand.next(), hand.next()]
    activity = next(item for item in items if item.HasField("activityRequest"))
    child = next(item for item in items if item.HasField("orchestratorRequest"))
    child_started = execution_started(child)
    hand.answer_activity(activity)
    second = hand.next("orchestratorRequest")
    hand.answer_turn(child, complete())
    hand.answer_turn(second)
    third = hand.next("orchestratorRequest")
    hand.answer_turn(third, complete())
    chunks = hand.stub.StreamInstanceHistory(pb.StreamInstanceHistoryRequest(instanceId=instance), timeout=5)
    history = [event for chunk in chunks for event in chunk.events]

    assert started.parentTraceContext == trace
    assert activity.activityRequest.parentTraceContext == trace
    assert dict(activity.activityRequest.tags) == {"cost": "low"}
    assert child_started.parentTraceContext == trace
    assert dict(child_started.tags) == {"from": "parent"}
    assert child_started.parentInstance.taskScheduledId == 2
    assert child_started.parentInstance.name.value == "traced"
    assert child_started.parentInstance.orchestrationInstance.instanceId == instance
    assert second.orchestratorRequest.orchestrationTraceContext.spanID.value == "1111111111111111"
    untimed = [event.WhichOneof("eventType") for event in history if event.timestamp.seconds < 1_000_000_000]
    assert untimed == []
