"""What a turn may ask for. One function for each kind of action; the table at the end lists them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from durabletask.internal import orchestrator_service_pb2 as pb

from towline.scheduler.engine import control, entities, events, lifecycle, wire
from towline.scheduler.engine.changes import Changes
from towline.scheduler.engine.errors import InvalidRequestError, NotFoundError, TooLargeError
from towline.scheduler.engine.model import (
    CONTINUED_AS_NEW,
    TERMINAL,
    Activity,
    Instance,
    MessageKind,
    Operation,
    OperationKind,
    Timer,
    TimerKind,
)
from towline.scheduler.engine.ports import World


@dataclass(slots=True)
class Step:
    """A turn that is being committed."""

    changes: Changes
    world: World
    instance: Instance
    response: pb.OrchestratorResponse
    now: int
    continuing: bool
    """The turn ends its generation: messages still go out, new activities and timers do not."""
    _trace: pb.TraceContext | None = None
    _trace_known: bool = field(default=False)

    def event(self, action_id: int) -> pb.HistoryEvent:
        """An event that confirms an action."""
        return pb.HistoryEvent(eventId=action_id, timestamp=wire.timestamp(self.now))

    def trace(self) -> pb.TraceContext | None:
        """Trace context of the orchestration's own span, the parent of its entity operations.

        The SDK leaves entity messages without one. The trace id is the starter's, the span id the one that
        the worker made for this orchestration.
        """
        if not self._trace_known:
            self._trace_known = True
            self._trace = self._build_trace()
        return self._trace

    def _build_trace(self) -> pb.TraceContext | None:
        start = pb.ExecutionStartedEvent.FromString(self.instance.start)
        if not start.HasField("parentTraceContext") or self.instance.trace is None:
            return None
        span_id = pb.OrchestrationTraceContext.FromString(self.instance.trace).spanID.value
        parent = start.parentTraceContext
        parts = parent.traceParent.split("-")
        if not span_id or len(parts) != 4:
            return None
        return pb.TraceContext(
            traceParent=f"{parts[0]}-{parts[1]}-{span_id}-{parts[3]}",
            spanID=span_id,
            traceState=parent.traceState if parent.HasField("traceState") else None,
        )


Handler: TypeAlias = Callable[[Step, pb.OrchestratorAction], list[bytes]]


def _schedule_task(step: Step, action: pb.OrchestratorAction) -> list[bytes]:
    if step.continuing:
        return []
    task = action.scheduleTask
    instance = step.instance
    event = step.event(action.id)
    scheduled = event.taskScheduled
    scheduled.name = task.name
    if task.HasField("version"):
        scheduled.version.CopyFrom(task.version)
    if task.HasField("input"):
        scheduled.input.CopyFrom(task.input)
    if task.HasField("parentTraceContext"):
        scheduled.parentTraceContext.CopyFrom(task.parentTraceContext)
    if task.tags:
        scheduled.tags.update(task.tags)
    add_activity(step.changes, step.world, instance, action.id, scheduled, step.now)
    return [event.SerializeToString()]


def add_activity(
    changes: Changes, world: World, instance: Instance, task_id: int, task: pb.TaskScheduledEvent, now: int
) -> None:
    """Queue the activity of a ``taskScheduled`` event, or fail it at once if it fits into no work item."""
    request = pb.ActivityRequest(
        name=task.name,
        version=task.version if task.HasField("version") else None,
        input=task.input if task.HasField("input") else None,
        orchestrationInstance=pb.OrchestrationInstance(
            instanceId=instance.id, executionId=wire.text(instance.execution_id)
        ),
        taskId=task_id,
        parentTraceContext=task.parentTraceContext if task.HasField("parentTraceContext") else None,
        tags=task.tags,
    ).SerializeToString()
    limit = world.limits.work_item_bytes - wire.ENVELOPE_BYTES
    if len(request) > limit:
        failure = events.too_large(f"input of activity '{task.name}'", len(request), limit)
        changes.post(instance, events.task_failed(now, task_id, failure), MessageKind.RESULT)
        return
    activity = Activity(
        row=world.next_row(),
        hub=instance.hub,
        instance_id=instance.id,
        execution_id=instance.execution_id,
        task_id=task_id,
        name=task.name,
        version=task.version.value if task.HasField("version") else instance.version,
        request=request,
        instance_row=instance.row,
    )
    world.open_activity(activity)
    changes.add_activity(activity)


def _create_timer(step: Step, action: pb.OrchestratorAction) -> list[bytes]:
    if step.continuing:
        return []
    event = step.event(action.id)
    event.timerCreated.fireAt.CopyFrom(action.createTimer.fireAt)
    add_timer(step.changes, step.world, step.instance, action.id, event.timerCreated, step.now)
    return [event.SerializeToString()]


def add_timer(
    changes: Changes, world: World, instance: Instance, timer_id: int, created: pb.TimerCreatedEvent, now: int
) -> None:
    """Set the timer of a ``timerCreated`` event."""
    fire_at = wire.micros(created.fireAt)
    instance.has_timers = True
    changes.add_timer(
        Timer(
            row=world.next_row(),
            hub=instance.hub,
            fire_at=fire_at,
            kind=TimerKind.ORCHESTRATION,
            target=instance.row,
            target_id=instance.id,
            execution_id=instance.execution_id,
            payload=events.timer_fired(max(now, fire_at), timer_id, created),
        )
    )


def _create_child(step: Step, action: pb.OrchestratorAction) -> list[bytes]:
    child = action.createSubOrchestration
    parent = step.instance
    child_id = child.instanceId or f"{parent.id}:{action.id:04x}"
    event = step.event(action.id)
    created = event.subOrchestrationInstanceCreated
    created.instanceId = child_id
    created.name = child.name
    if child.HasField("version"):
        created.version.CopyFrom(child.version)
    if child.HasField("input"):
        created.input.CopyFrom(child.input)
    if child.HasField("parentTraceContext"):
        created.parentTraceContext.CopyFrom(child.parentTraceContext)
    if child.tags:
        created.tags.update(child.tags)
    start_child(step.changes, step.world, parent, action.id, created, step.now)
    return [event.SerializeToString()]


def start_child(
    changes: Changes,
    world: World,
    parent: Instance,
    task_id: int,
    created: pb.SubOrchestrationInstanceCreatedEvent,
    now: int,
) -> None:
    """Start the child of a ``subOrchestrationInstanceCreated`` event."""
    start = pb.ExecutionStartedEvent(
        name=created.name,
        version=created.version if created.HasField("version") else None,
        input=created.input if created.HasField("input") else None,
        parentTraceContext=created.parentTraceContext if created.HasField("parentTraceContext") else None,
        tags=created.tags,
    )
    lifecycle.start_child(changes, world, parent, task_id, start, created.instanceId, now)


def _send_event(step: Step, action: pb.OrchestratorAction) -> list[bytes]:
    sent = action.sendEvent
    target = sent.instance.instanceId
    event = step.event(action.id)
    event.eventSent.instanceId = target
    event.eventSent.name = sent.name
    if sent.HasField("data"):
        event.eventSent.input.CopyFrom(sent.data)
    if target and not entities.is_entity_id(target):
        try:
            data = sent.data.value if sent.HasField("data") else None
            control.raise_event(
                step.changes, step.world, step.instance.hub, target, sent.name, data, step.now
            )
        except NotFoundError:
            pass  # the sender is told nothing about unknown targets
        except TooLargeError as error:
            _fail_full(step, target, str(error))
    return [event.SerializeToString()]


def _fail_full(step: Step, instance_id: str, message: str) -> None:
    # The action cannot be refused any more, and nothing may be lost silently.
    instance = step.world.instance(step.instance.hub, instance_id)
    if instance is not None:
        lifecycle.fail(step.changes, step.world, instance, events.failure("InboxFull", message), step.now)


def _terminate(step: Step, action: pb.OrchestratorAction) -> list[bytes]:
    order = action.terminateOrchestration
    if order.instanceId != step.instance.id:
        control.terminate(
            step.changes,
            step.world,
            step.instance.hub,
            order.instanceId,
            order.reason.value if order.HasField("reason") else None,
            recursive=order.recurse,
            now=step.now,
        )
    return []


def _complete(_step: Step, _action: pb.OrchestratorAction) -> list[bytes]:
    return []  # done after all the others, by the turn


def _entity_message(step: Step, action: pb.OrchestratorAction) -> list[bytes]:
    message = action.sendEntityMessage
    kind = message.WhichOneof("EntityMessageType")
    event = step.event(action.id)
    if kind is not None:
        _ENTITY_MESSAGES[kind](step, message, event)
    return [event.SerializeToString()]


def _signaled(step: Step, message: pb.SendEntityMessageAction, event: pb.HistoryEvent) -> None:
    signaled = message.entityOperationSignaled
    event.entityOperationSignaled.CopyFrom(signaled)
    request = pb.SignalEntityRequest(
        instanceId=signaled.targetInstanceId.value,
        name=signaled.operation,
        input=signaled.input if signaled.HasField("input") else None,
        requestId=signaled.requestId,
        scheduledTime=signaled.scheduledTime if signaled.HasField("scheduledTime") else None,
        parentTraceContext=step.trace(),
    )
    entities.signal(step.changes, step.world, step.instance.hub, request, step.now)


def _called(step: Step, message: pb.SendEntityMessageAction, event: pb.HistoryEvent) -> None:
    event.entityOperationCalled.CopyFrom(message.entityOperationCalled)
    call_entity(
        step.changes, step.world, step.instance, message.entityOperationCalled, step.now, step.trace()
    )


def call_entity(
    changes: Changes,
    world: World,
    instance: Instance,
    called: pb.EntityOperationCalledEvent,
    now: int,
    trace: pb.TraceContext | None,
) -> None:
    """Queue an entity call of this execution."""
    request = pb.OperationRequest(
        operation=called.operation,
        requestId=called.requestId,
        input=called.input if called.HasField("input") else None,
        traceContext=trace,
    )
    op = Operation(
        row=world.next_row(),
        kind=OperationKind.CALL,
        request_id=called.requestId,
        request=request.SerializeToString(),
        caller=instance.id,
        caller_execution=instance.execution_id,
    )
    entity = world.entity(instance.hub, entities.normal_id(called.targetInstanceId.value))
    entities.enqueue(changes, world, entity, op, now)


def _lock_requested(step: Step, message: pb.SendEntityMessageAction, event: pb.HistoryEvent) -> None:
    event.entityLockRequested.CopyFrom(message.entityLockRequested)
    if not step.continuing:
        entities.request_lock(step.changes, step.world, step.instance, message.entityLockRequested, step.now)


def _unlock_sent(step: Step, message: pb.SendEntityMessageAction, event: pb.HistoryEvent) -> None:
    unlock = message.entityUnlockSent
    event.entityUnlockSent.CopyFrom(unlock)
    entity_id = entities.normal_id(unlock.targetInstanceId.value)
    entities.unlock(step.changes, step.world, step.instance, unlock.criticalSectionId, entity_id, step.now)


_ENTITY_MESSAGES: Final[Mapping[str, Callable[[Step, pb.SendEntityMessageAction, pb.HistoryEvent], None]]] = {
    "entityOperationSignaled": _signaled,
    "entityOperationCalled": _called,
    "entityLockRequested": _lock_requested,
    "entityUnlockSent": _unlock_sent,
}

HANDLERS: Final[Mapping[str, Handler]] = {
    "scheduleTask": _schedule_task,
    "createSubOrchestration": _create_child,
    "createTimer": _create_timer,
    "sendEvent": _send_event,
    "completeOrchestration": _complete,
    "terminateOrchestration": _terminate,
    "sendEntityMessage": _entity_message,
}


def perform(step: Step, action: pb.OrchestratorAction) -> list[bytes]:
    """Carry out one action and answer the events that confirm it."""
    kind = action.WhichOneof("orchestratorActionType")
    assert kind is not None
    return HANDLERS[kind](step, action)


def known(action: pb.OrchestratorAction, kind: str) -> bool:
    """Whether an action can be carried out: asked before the first one is."""
    if kind == "rewindOrchestration":
        return True
    if kind == "completeOrchestration":
        status = action.completeOrchestration.orchestrationStatus
        return status in TERMINAL or status == CONTINUED_AS_NEW
    if kind == "sendEntityMessage":
        return _entity_message_is_valid(action.sendEntityMessage)
    return kind in HANDLERS


def _entity_message_is_valid(message: pb.SendEntityMessageAction) -> bool:
    kind = message.WhichOneof("EntityMessageType")
    return kind is not None and has_entity_targets(kind, getattr(message, kind))


def has_entity_targets(kind: str, event: Any) -> bool:
    """Whether an entity message (an event of that kind) names the entities that it is for."""
    targets = event.lockSet if kind == "entityLockRequested" else (event.targetInstanceId.value,)
    try:
        for target in targets:
            entities.normal_id(target)
    except InvalidRequestError:
        return False
    return bool(targets)
