"""Handing work out: leases, limits, streams, filters and what is never trusted twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from durabletask import task
from durabletask.client import OrchestrationStatus
from durabletask.internal import orchestrator_service_pb2 as pb
from durabletask.worker import VersioningOptions, VersionMatchStrategy
from google.protobuf import empty_pb2
from tests.conformance.hand_worker import complete
from tests.conformance.hubs import Hub
from tests.conformance.processes import python_process
from tests.conformance.support import unique
from tests.waiting import eventually

Turns = Any


def schedule(action_id: int, name: str = "act") -> pb.OrchestratorAction:
    return pb.OrchestratorAction(id=action_id, scheduleTask=pb.ScheduleTaskAction(name=name))


def begin(hub: Hub, name: str = "by-hand") -> str:
    instance = unique("run")
    hub.stub().StartInstance(pb.CreateInstanceRequest(instanceId=instance, name=name), timeout=5)
    return instance


@pytest.mark.acceptance(3)
def test_another_worker_finishes_the_run_of_a_worker_killed_inside_an_activity(
    hub: Hub, tmp_path: Path
) -> None:
    marker = tmp_path / "inside"
    sdk = hub.client()
    arguments = ("--address", hub.server.address, "--hub", hub.name, "--marker", str(marker))
    instance = sdk.schedule_new_orchestration("run_activity")

    with python_process("tests.conformance.worker_process", *arguments, log=tmp_path / "one.log") as first:
        eventually(marker.exists, "the first worker reaches the activity")
        first.kill()
        first.wait()
        with python_process("tests.conformance.worker_process", *arguments, log=tmp_path / "two.log"):
            ended = sdk.wait_for_orchestration_completion(instance, timeout=40)

    assert ended is not None
    assert ended.get_output(str) == "finished"


@pytest.mark.acceptance(4)
def test_a_turn_taken_by_a_stream_that_broke_is_handed_out_again(hub: Hub) -> None:
    first = hub.hand_worker()
    instance = begin(hub)
    lost = first.next("orchestratorRequest")
    first.close()

    again = hub.hand_worker().next("orchestratorRequest", timeout_s=20)

    assert again.orchestratorRequest.instanceId == lost.orchestratorRequest.instanceId == instance
    assert again.completionToken != lost.completionToken


def test_an_old_completion_token_changes_nothing(hub: Hub) -> None:
    first = hub.hand_worker()
    instance = begin(hub)
    lost = first.next("orchestratorRequest")
    first.close()
    second = hub.hand_worker()
    again = second.next("orchestratorRequest", timeout_s=20)

    second.answer_turn(lost, complete('"from the dead"'))
    second.answer_turn(again, complete('"from the living"'))
    ended = hub.client().wait_for_orchestration_completion(instance, timeout=10)

    assert ended is not None
    assert ended.get_output(str) == "from the living"


@pytest.mark.acceptance(13)
def test_hello_answers_beside_twelve_worker_streams(hub: Hub) -> None:
    workers = [hub.hand_worker() for _ in range(12)]

    hub.stub().Hello(empty_pb2.Empty(), timeout=3)
    instance = begin(hub)

    taken = eventually(lambda: [w for w in workers if not w._items.empty()])
    assert taken[0].next("orchestratorRequest").orchestratorRequest.instanceId == instance
    assert len(taken) == 1


@pytest.mark.acceptance(17)
def test_a_duplicate_activity_completion_changes_nothing(hub: Hub) -> None:
    hand = hub.hand_worker()
    instance = begin(hub)
    hand.answer_turn(hand.next("orchestratorRequest"), schedule(1))
    activity = hand.next("activityRequest")
    hand.answer_activity(activity, '"first"')
    hand.answer_activity(activity, '"second"')
    hand.answer_turn(hand.next("orchestratorRequest"))
    hand.stub.RaiseEvent(pb.RaiseEventRequest(instanceId=instance, name="end"), timeout=5)
    for turn in hand.drain(quiet_s=0.5):
        hand.answer_turn(turn, complete())

    chunks = hand.stub.StreamInstanceHistory(pb.StreamInstanceHistoryRequest(instanceId=instance), timeout=5)
    results = [
        event.taskCompleted.result.value
        for chunk in chunks
        for event in chunk.events
        if event.HasField("taskCompleted")
    ]

    assert results == ['"first"']


@pytest.mark.acceptance(19)
@pytest.mark.slow
def test_an_activity_result_of_eight_megabytes_ends_the_run(hub: Hub) -> None:
    def large(_: task.ActivityContext, __: object) -> str:
        return "x" * 8_000_000

    def run(ctx: task.OrchestrationContext, _: object) -> Turns:
        return len((yield ctx.call_activity(large)))

    hub.worker(orchestrators=[run], activities=[large])
    sdk = hub.client()
    instance = sdk.schedule_new_orchestration(run)

    ended = sdk.wait_for_orchestration_completion(instance, timeout=20)

    assert ended is not None
    if ended.runtime_status == OrchestrationStatus.COMPLETED:
        assert ended.get_output(int) == 8_000_000
    else:
        assert ended.runtime_status == OrchestrationStatus.FAILED
        assert ended.failure_details is not None
        assert ended.failure_details.message
    after = sdk.schedule_new_orchestration(run.__name__ + "_not_registered")
    unknown = sdk.wait_for_orchestration_completion(after, timeout=20)
    assert unknown is not None, "the stream no longer works"


@pytest.mark.acceptance(21)
def test_a_stream_never_holds_more_than_it_asked_for(hub: Hub) -> None:
    hand = hub.hand_worker(orchestrations=3, activities=2)
    for _ in range(5):
        begin(hub)

    turns = hand.drain(quiet_s=0.7)
    hand.answer_turn(turns[0], *[schedule(number) for number in range(1, 7)])
    later = hand.drain(quiet_s=0.7)
    activities = [item for item in later if item.HasField("activityRequest")]
    hand.answer_activity(activities[0])
    next_activities = [item for item in hand.drain(quiet_s=0.7) if item.HasField("activityRequest")]

    assert len(turns) == 3
    assert len([item for item in later if item.HasField("orchestratorRequest")]) == 1
    assert len(activities) == 2
    assert len(next_activities) == 1


def test_work_is_spread_over_the_streams(hub: Hub) -> None:
    workers = [hub.hand_worker(), hub.hand_worker()]
    for _ in range(10):
        begin(hub)

    counts = [len(worker.drain(quiet_s=0.7)) for worker in workers]

    assert sum(counts) == 10
    assert min(counts) >= 3


@pytest.mark.acceptance(22)
def test_strict_version_filters_still_dispatch_activities(hub: Hub) -> None:
    def act(_: task.ActivityContext, __: object) -> str:
        return "done"

    def run(ctx: task.OrchestrationContext, _: object) -> Turns:
        return (yield ctx.call_activity(act))

    strict = VersioningOptions(version="1.2.3", match_strategy=VersionMatchStrategy.STRICT)
    hub.worker(orchestrators=[run], activities=[act], versioning=strict, filters=True)
    sdk = hub.client()
    instance = sdk.schedule_new_orchestration(run, version="1.2.3")

    ended = sdk.wait_for_orchestration_completion(instance, timeout=10)

    assert ended is not None
    assert ended.get_output(str) == "done"


def test_two_workers_with_disjoint_filters_share_a_run(hub: Hub) -> None:
    def run(ctx: task.OrchestrationContext, _: object) -> Turns:
        return (yield ctx.call_activity(act)) + (yield ctx.call_activity("elsewhere"))

    def act(_: task.ActivityContext, __: object) -> int:
        return 1

    def elsewhere(_: task.ActivityContext, __: object) -> int:
        return 2

    hub.worker(orchestrators=[run], activities=[act], filters=True)
    hub.worker(activities=[elsewhere], orchestrators=[other_run], filters=True)
    sdk = hub.client()
    instances = [sdk.schedule_new_orchestration(run) for _ in range(10)]
    instances += [sdk.schedule_new_orchestration(other_run) for _ in range(10)]
    unserved = sdk.schedule_new_orchestration("nobody_has_this")

    ended = [sdk.wait_for_orchestration_completion(instance, timeout=15) for instance in instances]
    waiting = sdk.get_orchestration_state(unserved)

    assert [state.get_output(int) for state in ended if state is not None] == [3] * 10 + [4] * 10
    assert waiting is not None
    assert waiting.runtime_status == OrchestrationStatus.PENDING


def other_run(_: task.OrchestrationContext, __: object) -> int:
    return 4


def test_an_abandoned_activity_is_handed_out_again(hub: Hub) -> None:
    hand = hub.hand_worker()
    begin(hub)
    hand.answer_turn(hand.next("orchestratorRequest"), schedule(1))
    first = hand.next("activityRequest")
    hand.stub.AbandonTaskActivityWorkItem(
        pb.AbandonActivityTaskRequest(completionToken=first.completionToken), timeout=5
    )

    again = hand.next("activityRequest", timeout_s=10)

    assert again.activityRequest.taskId == 1
    assert again.completionToken != first.completionToken


def test_task_hubs_see_nothing_of_each_other(hub: Hub) -> None:
    other = Hub(hub.server)
    try:
        instance = unique("same-id")
        request = pb.CreateInstanceRequest(instanceId=instance, name="by-hand")
        hub.stub().StartInstance(request, timeout=5)
        elsewhere = other.client()
        assert elsewhere.get_orchestration_state(instance) is None
        assert elsewhere.get_all_orchestration_states() == []
        other.stub().StartInstance(request, timeout=5)
        mine, theirs = hub.hand_worker(), other.hand_worker()
        mine.answer_turn(mine.next("orchestratorRequest"), complete('"mine"'))
        theirs.answer_turn(theirs.next("orchestratorRequest"), complete('"theirs"'))

        results = [
            finished.get_output(str)
            for sdk in (hub.client(), elsewhere)
            if (finished := sdk.wait_for_orchestration_completion(instance, timeout=10)) is not None
        ]
        other.stub().DeleteTaskHub(pb.DeleteTaskHubRequest(), timeout=5)

        assert results == ["mine", "theirs"]
        assert elsewhere.get_orchestration_state(instance) is None
        assert hub.client().get_orchestration_state(instance) is not None
    finally:
        other.close()
