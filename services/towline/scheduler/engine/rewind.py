"""Rewind: run a failed instance again from its last good point.

The worker computes the new history (without failures); the scheduler replaces the old one by it and does
again whatever in it has no result.
"""

from __future__ import annotations

from collections.abc import Sequence

from durabletask.internal import orchestrator_service_pb2 as pb

from towline.scheduler.engine import actions, entities, events, lifecycle, wire
from towline.scheduler.engine.changes import Changes
from towline.scheduler.engine.errors import NotFoundError, PreconditionError
from towline.scheduler.engine.model import FAILED, RUNNING, Instance, MessageKind, Parent
from towline.scheduler.engine.ports import World


def request(changes: Changes, world: World, hub: int, instance_id: str, reason: str | None, now: int) -> None:
    """Rewind an instance for a client.

    Raises:
        NotFoundError: No such instance.
        PreconditionError: It has not failed.
    """
    instance = world.instance(hub, instance_id)
    if instance is None:
        raise NotFoundError(f"no orchestration instance with the id '{instance_id}'")
    if instance.status != FAILED:
        raise PreconditionError(
            f"orchestration instance '{instance_id}' has not failed: only a failed one can be rewound"
        )
    prepare(changes, world, instance, reason, None, now)


def prepare(
    changes: Changes,
    world: World,
    instance: Instance,
    reason: str | None,
    parent_execution_id: str | None,
    now: int,
) -> None:
    """Make a failed instance run again and ask the worker for its new history."""
    lifecycle.stop_work(changes, world, instance, now)
    changes.clear_inbox(instance)
    instance.status = RUNNING
    instance.output = instance.failure = instance.completed = None
    instance.updated = now
    changes.touch(instance)
    changes.changed[instance.row] = instance
    changes.post(instance, events.execution_rewound(now, reason, parent_execution_id), MessageKind.REWIND)


def problem(instance: Instance, history: Sequence[pb.HistoryEvent]) -> str | None:
    """What makes a rewritten history unusable; None if nothing does. Asked before anything is changed."""
    starts = [event.executionStarted for event in history if event.HasField("executionStarted")]
    if len(starts) != 1:
        return f"a rewound history has {len(starts)} executionStarted events instead of one"
    execution_id = starts[0].orchestrationInstance.executionId.value
    if not execution_id or execution_id == instance.execution_id:
        return "a rewound history must carry a new execution id"
    for event in history:
        kind = event.WhichOneof("eventType")
        if kind is None:
            return f"event {event.eventId} of a rewound history is of an unknown kind"
        if kind == "subOrchestrationInstanceCreated":
            child_id = event.subOrchestrationInstanceCreated.instanceId
            if not child_id or child_id.startswith("@") or child_id == instance.id:
                return f"event {event.eventId} of a rewound history names no usable sub-orchestration"
        elif kind in ("entityOperationCalled", "entityLockRequested") and not actions.has_entity_targets(
            kind, getattr(event, kind)
        ):
            return f"event {event.eventId} of a rewound history names no usable entity"
    return None


def apply(
    changes: Changes, world: World, instance: Instance, action: pb.RewindOrchestrationAction, now: int
) -> None:
    """Take over the history that the worker has rewritten. It already has this turn's events."""
    history = list(action.newHistory)
    changes.clear_history(instance)
    chunk = wire.fields(wire.PAST_EVENT, [event.SerializeToString() for event in history])
    changes.append_history(instance, chunk, len(history))
    reason: str | None = None
    for event in history:
        if event.HasField("executionStarted"):
            _adopt_start(instance, event.executionStarted)
        elif event.HasField("executionRewound"):
            reason = (
                event.executionRewound.reason.value if event.executionRewound.HasField("reason") else None
            )
    instance.trace = None
    changes.touch(instance)
    for event in open_events(history):
        _redo(changes, world, instance, event, reason, now)
    changes.post(instance, b"", MessageKind.NUDGE)


def _adopt_start(instance: Instance, started: pb.ExecutionStartedEvent) -> None:
    # The worker made up the new execution id.
    start = pb.ExecutionStartedEvent()
    start.CopyFrom(started)
    start.ClearField("input")
    instance.start = start.SerializeToString()
    instance.execution_id = start.orchestrationInstance.executionId.value
    if instance.parent is not None and start.HasField("parentInstance"):
        old = instance.parent
        execution_id = start.parentInstance.orchestrationInstance.executionId.value
        instance.parent = Parent(old.row, old.instance_id, execution_id or old.execution_id, old.task_id)


_RESULTS = {
    "taskCompleted": ("taskScheduled", "taskScheduledId"),
    "taskFailed": ("taskScheduled", "taskScheduledId"),
    "timerFired": ("timerCreated", "timerId"),
    "subOrchestrationInstanceCompleted": ("subOrchestrationInstanceCreated", "taskScheduledId"),
    "subOrchestrationInstanceFailed": ("subOrchestrationInstanceCreated", "taskScheduledId"),
    "entityOperationCompleted": ("entityOperationCalled", "requestId"),
    "entityOperationFailed": ("entityOperationCalled", "requestId"),
    "entityLockGranted": ("entityLockRequested", "criticalSectionId"),
}


def open_events(history: list[pb.HistoryEvent]) -> list[pb.HistoryEvent]:
    """Confirming events that have no result in the history, in order."""
    waiting: dict[tuple[str, int | str], pb.HistoryEvent] = {}
    for event in history:
        kind = event.WhichOneof("eventType")
        if kind in ("taskScheduled", "timerCreated", "subOrchestrationInstanceCreated"):
            waiting[kind, event.eventId] = event
        elif kind == "entityOperationCalled":
            waiting[kind, event.entityOperationCalled.requestId] = event
        elif kind == "entityLockRequested":
            waiting[kind, event.entityLockRequested.criticalSectionId] = event
        elif kind in _RESULTS:
            asked, attribute = _RESULTS[kind]
            waiting.pop((asked, getattr(getattr(event, kind), attribute)), None)
    return list(waiting.values())


def _redo(
    changes: Changes, world: World, instance: Instance, event: pb.HistoryEvent, reason: str | None, now: int
) -> None:
    if event.HasField("taskScheduled"):
        actions.add_activity(changes, world, instance, event.eventId, event.taskScheduled, now)
    elif event.HasField("timerCreated"):
        actions.add_timer(changes, world, instance, event.eventId, event.timerCreated, now)
    elif event.HasField("entityOperationCalled"):
        actions.call_entity(changes, world, instance, event.entityOperationCalled, now, None)
    elif event.HasField("entityLockRequested"):
        entities.request_lock(changes, world, instance, event.entityLockRequested, now)
    else:
        _redo_child(changes, world, instance, event, reason, now)


def _redo_child(
    changes: Changes, world: World, parent: Instance, event: pb.HistoryEvent, reason: str | None, now: int
) -> None:
    created = event.subOrchestrationInstanceCreated
    child = world.instance(parent.hub, created.instanceId)
    if child is None or child.parent is None or child.parent.row != parent.row:
        # Purged, or not a child of this one any more.
        actions.start_child(changes, world, parent, event.eventId, created, now)
        return
    child.parent = Parent(parent.row, parent.id, parent.execution_id, event.eventId)
    changes.touch(child)
    if child.status == FAILED:
        prepare(changes, world, child, reason, parent.execution_id, now)
    elif child.terminal:
        lifecycle.notify_parent(changes, world, child, now)
