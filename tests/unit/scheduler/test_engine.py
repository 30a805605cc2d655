"""Rules of the engine, one by one: given these inputs, expect this state."""

from __future__ import annotations

import pytest
from durabletask.internal import orchestrator_service_pb2 as pb
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.scheduler.worlds import HUB, Bench, history

from towline.scheduler.engine import control, entities, lifecycle, rewind, turns, wire
from towline.scheduler.engine.errors import (
    AlreadyExistsError,
    InvalidRequestError,
    NotFoundError,
    PreconditionError,
    TooLargeError,
)
from towline.scheduler.engine.model import (
    COMPLETED,
    CONTINUED_AS_NEW,
    FAILED,
    PENDING,
    RUNNING,
    SUSPENDED,
    TERMINATED,
    Instance,
)
from towline.scheduler.engine.ports import Limits


def schedule(action_id: int, name: str = "work", data: str | None = None) -> pb.OrchestratorAction:
    action = pb.OrchestratorAction(id=action_id, scheduleTask=pb.ScheduleTaskAction(name=name))
    if data is not None:
        action.scheduleTask.input.value = data
    return action


def complete(
    status: int = COMPLETED, result: str | None = None, action_id: int = 99
) -> pb.OrchestratorAction:
    action = pb.OrchestratorAction(id=action_id)
    action.completeOrchestration.orchestrationStatus = status  # type: ignore[assignment]
    if result is not None:
        action.completeOrchestration.result.value = result
    return action


def entity_action(action_id: int, **message: object) -> pb.OrchestratorAction:
    return pb.OrchestratorAction(id=action_id, sendEntityMessage=pb.SendEntityMessageAction(**message))


def call(action_id: int, request_id: str, target: str = "@counter@a") -> pb.OrchestratorAction:
    called = pb.EntityOperationCalledEvent(requestId=request_id, operation="add")
    called.targetInstanceId.value = target
    return entity_action(action_id, entityOperationCalled=called)


def lock(action_id: int, section: str, *targets: str) -> pb.OrchestratorAction:
    return entity_action(
        action_id, entityLockRequested=pb.EntityLockRequestedEvent(criticalSectionId=section, lockSet=targets)
    )


def names(instance: Instance) -> list[str]:
    return [event.WhichOneof("eventType") or "" for event in history(instance)]


def test_a_turn_appends_what_was_sent_what_it_asked_for_and_its_end() -> None:
    bench = Bench()
    run = bench.start("x", "1")
    bench.begin(run)
    bench.answer(run, schedule(1))

    assert names(run) == ["orchestratorStarted", "executionStarted", "taskScheduled", "orchestratorCompleted"]
    assert run.status == RUNNING
    assert [one.task_id for one in bench.dispatched] == [1]


def test_absent_and_empty_input_stay_different() -> None:
    bench = Bench()
    bare, empty = bench.start("x", None, "a"), bench.start("x", "", "b")

    assert not bench.begin(bare).newEvents[1].executionStarted.HasField("input")
    assert bench.begin(empty).newEvents[1].executionStarted.HasField("input")


def test_a_retry_with_the_same_action_id_gets_both_results() -> None:
    bench = Bench()
    run = bench.start("x")
    bench.begin(run)
    bench.answer(run, schedule(1))
    bench.finish_activity(bench.dispatched[0], None, error="Boom")
    bench.begin(run)
    bench.answer(run, schedule(1))
    bench.finish_activity(bench.dispatched[1], "2")

    results = [event.WhichOneof("eventType") for event in bench.begin(run).newEvents]
    assert results == ["orchestratorStarted", "taskCompleted"]


def test_an_id_that_is_taken_is_refused_unless_its_status_is_replaceable() -> None:
    bench = Bench()
    bench.start("x")
    with pytest.raises(AlreadyExistsError):
        bench.start("y")
    policy = pb.OrchestrationIdReusePolicy(replaceableStatus=[PENDING])  # type: ignore[list-item]

    assert bench.start("y", orchestrationIdReusePolicy=policy).name == "y"


def test_a_suspended_instance_keeps_its_messages_for_one_turn_after_the_resume() -> None:
    bench = Bench()
    run = bench.start("x")
    bench.begin(run)
    bench.answer(run)
    control.suspend(bench.changes, bench.world, HUB, "run", None, bench.now)
    control.raise_event(bench.changes, bench.world, HUB, "run", "e", None, bench.now)
    assert run.status == SUSPENDED
    assert not run.runnable
    control.resume(bench.changes, bench.world, HUB, "run", None, bench.now)

    sent = [event.WhichOneof("eventType") for event in bench.begin(run).newEvents]
    assert sent == ["orchestratorStarted", "executionSuspended", "eventRaised", "executionResumed"]


def test_unknown_instances_are_not_found_and_finished_ones_take_events_without_effect() -> None:
    bench = Bench()
    with pytest.raises(NotFoundError):
        control.raise_event(bench.changes, bench.world, HUB, "nobody", "e", None, bench.now)
    run = bench.start("x")
    bench.begin(run)
    bench.answer(run, complete(result="1"))
    control.raise_event(bench.changes, bench.world, HUB, "run", "e", None, bench.now)

    assert not run.inbox
    bench.start("y", None, "live")
    with pytest.raises(PreconditionError):
        control.restart(bench.changes, bench.world, HUB, "live", new_id=False, now=bench.now)


def test_an_instance_that_nobody_serves_takes_so_many_events_and_no_more() -> None:
    """One more than their numbers have bits for would be another instance's, or break every commit."""
    bench = Bench()
    bench.world.limits = Limits(inbox_messages=3)
    run = bench.start("x")
    for _ in range(2):
        control.raise_event(bench.changes, bench.world, HUB, "run", "e", None, bench.now)

    with pytest.raises(TooLargeError, match="the limit is 3"):
        control.raise_event(bench.changes, bench.world, HUB, "run", "e", None, bench.now)
    with pytest.raises(TooLargeError):
        control.suspend(bench.changes, bench.world, HUB, "run", None, bench.now)
    assert (len(run.inbox), run.status) == (3, PENDING)
    bench.begin(run)
    bench.answer(run)
    control.raise_event(bench.changes, bench.world, HUB, "run", "e", None, bench.now)


def test_an_instance_that_nobody_serves_takes_so_many_bytes_of_events_and_no_more() -> None:
    """All that waits is in memory when some of it is handed out: 200 events of 3 MB took 690 MB."""
    bench = Bench()
    bench.world.limits = Limits(inbox_bytes=10_000)
    run = bench.start("x")
    for _ in range(3):
        control.raise_event(bench.changes, bench.world, HUB, "run", "e", "x" * 4_000, bench.now)

    with pytest.raises(TooLargeError, match="the limit is 10000"):
        control.raise_event(bench.changes, bench.world, HUB, "run", "e", None, bench.now)
    bench.begin(run)
    bench.answer(run)
    assert not run.inbox
    control.raise_event(bench.changes, bench.world, HUB, "run", "e", None, bench.now)


def test_a_suspended_instance_with_a_full_inbox_is_resumed() -> None:
    bench = Bench()
    bench.world.limits = Limits(inbox_messages=2)
    run = bench.start("x")
    control.suspend(bench.changes, bench.world, HUB, "run", None, bench.now)
    control.resume(bench.changes, bench.world, HUB, "run", None, bench.now)

    assert [event.WhichOneof("eventType") for event in bench.begin(run).newEvents] == [
        "orchestratorStarted",
        "executionStarted",
        "executionSuspended",
        "executionResumed",
    ]


def test_what_an_orchestration_sends_to_a_full_inbox_fails_its_owner_and_not_the_sender() -> None:
    bench = Bench()
    bench.world.limits = Limits(inbox_messages=1)
    sender, target = bench.start("x"), bench.start("x", None, "target")
    bench.begin(sender)
    sent = pb.SendEventAction(instance=pb.OrchestrationInstance(instanceId="target"), name="e")
    bench.answer(sender, pb.OrchestratorAction(id=1, sendEvent=sent))

    assert (sender.status, target.status) == (RUNNING, FAILED)
    assert pb.TaskFailureDetails.FromString(target.failure or b"").errorType == "InboxFull"


def test_an_action_of_an_unknown_kind_fails_the_instance() -> None:
    bench = Bench()
    run = bench.start("x")
    bench.begin(run)
    bench.answer(run, schedule(1), pb.OrchestratorAction(id=2))

    assert run.status == FAILED
    assert run.failure is not None
    assert pb.TaskFailureDetails.FromString(run.failure).errorType == "InvalidOrchestratorResponse"
    assert not bench.world.open


def test_a_history_over_the_limit_fails_the_instance_with_size_and_limit() -> None:
    bench = Bench()
    bench.world.limits = Limits(work_item_bytes=4_000)
    run = bench.start("x", "a" * 5_000)
    turns.begin(bench.changes, bench.world, run, "t", bench.now)

    assert run.failure is not None
    assert "4000 bytes" in pb.TaskFailureDetails.FromString(run.failure).errorMessage


def with_history(bench: Bench, size: int) -> Instance:
    """An instance with about so many bytes of history and an event that waits."""
    run = bench.start("x", "a" * size)
    bench.begin(run)
    bench.answer(run)
    control.raise_event(bench.changes, bench.world, HUB, run.id, "more", None, bench.now)
    bench.settle()
    return run


def handed_out(bench: Bench, run: Instance, reader: turns.Reader) -> pb.OrchestratorRequest:
    item = turns.begin(bench.changes, bench.world, run, "t", bench.now, reader=reader)
    assert item is not None
    assert len(item) < bench.world.limits.work_item_bytes
    request = pb.WorkItem.FromString(item).orchestratorRequest
    kinds = [event.WhichOneof("eventType") for event in request.newEvents]
    assert kinds == ["orchestratorStarted", "eventRaised"]
    return request


@pytest.mark.parametrize("reader", [turns.Reader.FETCHES, turns.Reader.KEEPS])
def test_a_history_that_the_worker_fetches_need_not_fit_a_work_item(reader: turns.Reader) -> None:
    bench = Bench()
    run = with_history(bench, 5_000)
    bench.world.limits = Limits(work_item_bytes=4_000, history_bytes=10_000)

    request = handed_out(bench, run, reader)

    assert request.requiresHistoryStreaming
    assert not request.pastEvents
    assert request.properties[wire.HISTORY_LENGTH].number_value == len(history(run))


def test_it_has_a_limit_of_its_own() -> None:
    bench = Bench()
    run = with_history(bench, 5_000)
    bench.world.limits = Limits(work_item_bytes=8_000, history_bytes=5_000)
    turns.begin(bench.changes, bench.world, run, "t", bench.now, reader=turns.Reader.FETCHES)

    assert run.failure is not None
    assert "5000 bytes" in pb.TaskFailureDetails.FromString(run.failure).errorMessage


@pytest.mark.parametrize("reader", turns.Reader)
def test_a_small_history_comes_with_the_turn(reader: turns.Reader) -> None:
    bench = Bench()
    run = with_history(bench, 1_000)

    request = handed_out(bench, run, reader)

    assert not request.requiresHistoryStreaming
    assert list(request.pastEvents) == history(run)


@pytest.mark.parametrize(
    ("reader", "sent"), [(turns.Reader.STOCK, 12), (turns.Reader.FETCHES, 12), (turns.Reader.KEEPS, 6)]
)
def test_who_keeps_an_orchestration_gets_its_first_turn_and_its_last(reader: turns.Reader, sent: int) -> None:
    bench = Bench()
    run = with_history(bench, 100)
    for size in (20_000, 200, 0):
        bench.begin(run)
        bench.answer(run)
        data = "b" * size
        control.raise_event(bench.changes, bench.world, HUB, run.id, "more", data, bench.now)
        bench.settle()

    request = handed_out(bench, run, reader)

    whole = history(run)
    assert len(whole) == 12
    assert list(request.pastEvents) == (whole if sent == 12 else whole[:3] + whole[-3:])
    assert request.requiresHistoryStreaming == (sent < 12)


@pytest.mark.parametrize("generation", [1, 2])
def test_an_instance_that_ends_before_its_first_turn_keeps_what_it_was_started_with(generation: int) -> None:
    """Restart and whoever asks after its input read it from there, once it is not in memory any more."""
    bench = Bench()
    run = bench.start("x", '"of 1"')
    if generation == 2:
        bench.begin(run)
        bench.answer(run, complete(CONTINUED_AS_NEW, '"of 2"'))
    bench.begin(run)  # with a worker that is never heard of again

    control.terminate(bench.changes, bench.world, HUB, run.id, None, recursive=False, now=bench.now)

    assert names(run) == ["executionStarted", "executionTerminated", "executionCompleted"]
    assert history(run)[0].executionStarted.input.value == f'"of {generation}"'


def test_a_turn_lost_too_often_is_poison() -> None:
    bench = Bench()
    run = bench.start("x")
    for _ in range(bench.world.limits.losses):
        assert run.status == PENDING
        bench.begin(run)
        turns.lost(bench.changes, bench.world, run, bench.now, counts=True)

    assert run.status == FAILED


def test_locks_pass_from_holder_to_holder_in_order_and_shut_others_out() -> None:
    bench = Bench()
    runs = [bench.start("x", None, f"r{n}") for n in range(2)]
    for number, run in enumerate(runs):
        bench.begin(run)
        bench.answer(run, lock(1, f"s{number}", "@counter@a", "@counter@b"))
    first, second = bench.world.entity(HUB, "@counter@a"), bench.world.entity(HUB, "@counter@b")
    bench.begin(runs[0])
    bench.answer(runs[0], call(2, "q1"))

    assert (first.lock_holder, second.lock_holder) == ("r0", "r0")
    assert [op.request_id for op in first.admissible()] == ["q1"]
    control.terminate(bench.changes, bench.world, HUB, "r0", None, recursive=False, now=bench.now)
    assert (first.lock_holder, second.lock_holder) == ("r1", "r1")


def test_a_lock_set_may_have_any_number_of_entities() -> None:
    """An error while one holder's end hands it on would come again with each attempt to end that one."""
    bench = Bench()
    targets = [f"@counter@{n:04}" for n in range(1_000)]
    runs = [bench.start("x", None, f"r{n}") for n in range(2)]
    for number, run in enumerate(runs):
        bench.begin(run)
        bench.answer(run, lock(1, f"s{number}", *targets))
    bench.begin(runs[0])
    bench.answer(runs[0], complete())

    assert {bench.world.entity(HUB, target).lock_holder for target in targets} == {"r1"}
    assert [event.WhichOneof("eventType") for event in bench.begin(runs[1]).newEvents] == [
        "orchestratorStarted",
        "entityLockGranted",
    ]


def test_an_entity_result_reaches_only_the_execution_that_called() -> None:
    bench = Bench()
    run = bench.start("x")
    bench.begin(run)
    bench.answer(run, call(1, "q"))
    control.raise_event(bench.changes, bench.world, HUB, "run", "e", None, bench.now)
    bench.begin(run)
    bench.answer(run, complete(int(pb.ORCHESTRATION_STATUS_CONTINUED_AS_NEW), "2"))
    bench.run_entity(bench.world.entity(HUB, "@counter@a"), lambda _, __: ("1", "1"))

    kinds = [event.WhichOneof("eventType") for event in bench.begin(run).newEvents]
    assert kinds == ["orchestratorStarted", "executionStarted"]


@pytest.mark.parametrize("bad", ["", "x", "@x", "x@y@z", "@@k"])
def test_entity_ids_have_a_name_and_a_key(bad: str) -> None:
    with pytest.raises(InvalidRequestError):
        entities.normal_id(bad)
    assert entities.normal_id("@Name@Key@more") == "@name@Key@more"


@settings(max_examples=80, deadline=None)
@given(
    plan=st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["call", "signal", "lock"])), max_size=14),
    data=st.data(),
)
def test_every_entity_call_is_answered_once_whatever_locks_and_losses_come_between(
    plan: list[tuple[int, str]], data: st.DataObject
) -> None:
    bench = Bench()
    runs = [bench.start("x", None, f"r{n}") for n in range(4)]
    asked: dict[str, set[str]] = {run.id: set() for run in runs}
    entity = bench.world.entity(HUB, "@counter@a")
    for number, (index, what) in enumerate(plan):
        run = runs[index]
        if not run.inbox:
            control.raise_event(bench.changes, bench.world, HUB, run.id, "e", None, bench.now)
        bench.begin(run)
        if what == "call":
            asked[run.id].add(f"q{number}")
            bench.answer(run, call(number, f"q{number}"))
        elif what == "lock" and not run.locks:
            bench.answer(run, lock(number, f"s{number}", "@counter@a"))
        else:
            signal = pb.EntityOperationSignaledEvent(requestId=f"x{number}", operation="add")
            signal.targetInstanceId.value = "@counter@a"
            bench.answer(run, entity_action(number, entityOperationSignaled=signal))
        if data.draw(st.booleans()) and entity.runnable:
            bench.run_entity(entity, lambda state, _: (str(int(state or 0) + 1), "1"))
    for run in runs:  # whoever holds the lock lets go
        entities.release_all(bench.changes, bench.world, run, bench.now)
    bench.settle()
    while entity.runnable:
        bench.run_entity(entity, lambda state, _: (str(int(state or 0) + 1), "1"))

    done = sum(what != "lock" for _, what in plan)
    for run in runs:
        if not run.inbox:
            control.raise_event(bench.changes, bench.world, HUB, run.id, "e", None, bench.now)
        bench.begin(run)
        bench.answer(run)
        answered = [
            e.entityOperationCompleted.requestId
            for e in history(run)
            if e.HasField("entityOperationCompleted")
        ]
        assert sorted(answered) == sorted(asked[run.id])
    assert not entity.queue
    assert int(entity.state or 0) >= done


def rewound(history: list[pb.HistoryEvent]) -> pb.OrchestratorAction:
    return pb.OrchestratorAction(id=-1, rewindOrchestration=pb.RewindOrchestrationAction(newHistory=history))


def started(execution_id: str) -> pb.HistoryEvent:
    event = pb.HistoryEvent(executionStarted=pb.ExecutionStartedEvent(name="x"))
    event.executionStarted.orchestrationInstance.executionId.value = execution_id
    return event


UNUSABLE_HISTORIES: dict[str, list[pb.HistoryEvent]] = {
    "empty": [],
    "two starts": [started("e1"), started("e2")],
    "no execution id": [started("")],
    "unknown event": [started("e1"), pb.HistoryEvent(eventId=3)],
    "empty lock set": [
        started("e1"),
        pb.HistoryEvent(entityLockRequested=pb.EntityLockRequestedEvent(criticalSectionId="s")),
    ],
    "no entity": [started("e1"), pb.HistoryEvent(entityOperationCalled={"targetInstanceId": {"value": "x"}})],
    "child is an entity": [
        started("e1"),
        pb.HistoryEvent(subOrchestrationInstanceCreated={"instanceId": "@e@k", "name": "x"}),
    ],
}


@pytest.mark.parametrize("unusable", UNUSABLE_HISTORIES)
def test_a_rewound_history_that_makes_no_sense_fails_the_instance_and_changes_nothing_else(
    unusable: str,
) -> None:
    bench = Bench()
    run = bench.start("x")
    bench.begin(run)
    bench.answer(run, complete(int(pb.ORCHESTRATION_STATUS_FAILED)))
    rewind.request(bench.changes, bench.world, HUB, "run", None, bench.now)
    before = history(run)
    bench.begin(run)
    bench.answer(run, rewound(UNUSABLE_HISTORIES[unusable]))

    assert run.status == FAILED
    assert pb.TaskFailureDetails.FromString(run.failure or b"").errorType == "InvalidOrchestratorResponse"
    assert history(run)[: len(before)] == before
    assert not run.inbox


def test_a_rewind_answers_only_a_turn_that_asked_for_one() -> None:
    bench = Bench()
    run = bench.start("x")
    bench.begin(run)
    bench.answer(run, rewound([started("e1")]))
    assert run.status == FAILED

    other = bench.start("x", None, "other")
    bench.begin(other)
    bench.answer(other, complete(int(pb.ORCHESTRATION_STATUS_FAILED)))
    rewind.request(bench.changes, bench.world, HUB, "other", None, bench.now)
    bench.begin(other)
    bench.answer(other)
    assert other.status == FAILED


def test_a_rewind_leaves_an_instance_alone_that_is_no_child() -> None:
    bench = Bench()
    stranger = bench.start("y", None, "stranger")
    run = bench.start("x")
    bench.begin(run)
    bench.answer(run, complete(int(pb.ORCHESTRATION_STATUS_FAILED)))
    rewind.request(bench.changes, bench.world, HUB, "run", None, bench.now)
    bench.begin(run)
    created = pb.HistoryEvent(
        eventId=1, subOrchestrationInstanceCreated={"instanceId": "stranger", "name": "y"}
    )
    bench.answer(run, rewound([started("e1"), created]))

    assert stranger.parent is None
    assert [event.WhichOneof("eventType") for event in bench.begin(run).newEvents] == [
        "orchestratorStarted",
        "subOrchestrationInstanceFailed",
    ]


def test_an_orchestration_that_terminates_its_own_parent_recursively_ends_once() -> None:
    bench = Bench()
    parent = bench.start("x", None, "parent")
    bench.begin(parent)
    child_action = pb.OrchestratorAction(
        id=1, createSubOrchestration=pb.CreateSubOrchestrationAction(instanceId="child", name="y")
    )
    bench.answer(parent, child_action)
    child = bench.world.instance(HUB, "child")
    assert child is not None
    bench.begin(child)
    order = pb.OrchestratorAction(
        id=1, terminateOrchestration=pb.TerminateOrchestrationAction(instanceId="parent", recurse=True)
    )
    bench.answer(child, order, complete())

    assert (parent.status, child.status) == (TERMINATED, TERMINATED)
    ends = [event for event in history(child) if event.HasField("executionCompleted")]
    assert len(ends) == 1


def test_a_time_beyond_all_calendars_is_the_last_one() -> None:
    bench = Bench()
    request = pb.CreateInstanceRequest(
        instanceId="late", name="x", scheduledStartTimestamp={"seconds": 2**62}
    )
    run = lifecycle.start(bench.changes, bench.world, HUB, request, bench.now)
    assert run.start_at is not None
    assert run.start_at < 2**63


def test_a_run_that_is_resumed_after_it_has_started_over_is_running() -> None:
    """It was said to be pending, as if it had never begun, until a worker had taken its next turn."""
    bench = Bench()
    run = bench.start("x")
    bench.begin(run)
    control.suspend(bench.changes, bench.world, HUB, "run", None, bench.now)
    bench.answer(run, complete(CONTINUED_AS_NEW, '"again"'))
    assert run.status == SUSPENDED

    control.resume(bench.changes, bench.world, HUB, "run", None, bench.now)

    assert run.status == RUNNING
