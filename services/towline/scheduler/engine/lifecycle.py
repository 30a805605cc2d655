"""Start, end and control of instances. All of it works without any worker."""

from __future__ import annotations

from durabletask.internal import orchestrator_service_pb2 as pb

from towline.scheduler.engine import entities, events, wire
from towline.scheduler.engine.changes import Changes
from towline.scheduler.engine.errors import AlreadyExistsError
from towline.scheduler.engine.model import (
    COMPLETED,
    FAILED,
    PENDING,
    TERMINATED,
    Instance,
    MessageKind,
    Parent,
    Timer,
    TimerKind,
)
from towline.scheduler.engine.ports import World


def create(
    changes: Changes,
    world: World,
    hub: int,
    instance_id: str,
    start: pb.ExecutionStartedEvent,
    *,
    now: int,
    parent: Parent | None = None,
) -> Instance:
    """Create an instance whose id is free; ``start`` says everything about it but the ids."""
    execution_id = world.new_id()
    start.orchestrationInstance.instanceId = instance_id
    start.orchestrationInstance.executionId.value = execution_id
    has_input = start.HasField("input")
    data = start.input.value if has_input else None
    first = events.execution_started(now, start)
    start.ClearField("input")
    start_at = (
        wire.micros(start.scheduledStartTimestamp) if start.HasField("scheduledStartTimestamp") else None
    )
    instance = Instance(
        row=world.next_row(),
        hub=hub,
        id=instance_id,
        name=start.name,
        version=start.version.value if start.HasField("version") else None,
        execution_id=execution_id,
        status=PENDING,
        created=now,
        updated=now,
        start=start.SerializeToString(),
        start_at=start_at if start_at is not None and start_at > now else None,
        parent=parent,
        input=data,
        input_known=True,
        chunks=[],
    )
    world.adopt(instance)
    changes.create(instance)
    changes.post(instance, first, MessageKind.RESULT)
    if instance.start_at is not None:
        instance.has_timers = True
        changes.add_timer(
            Timer(
                world.next_row(),
                hub,
                instance.start_at,
                TimerKind.START,
                instance.row,
                instance_id,
                execution_id,
                b"",
            )
        )
    return instance


def start(changes: Changes, world: World, hub: int, request: pb.CreateInstanceRequest, now: int) -> Instance:
    """Start an instance for a client.

    Raises:
        AlreadyExistsError: The id is taken and its status is not among the replaceable ones.
    """
    instance_id = request.instanceId or world.new_id()
    existing = world.instance(hub, instance_id)
    if existing is not None:
        if existing.status not in request.orchestrationIdReusePolicy.replaceableStatus:
            raise AlreadyExistsError(f"an orchestration instance with the id '{instance_id}' already exists")
        replace(changes, world, existing, now)
    event = pb.ExecutionStartedEvent(
        name=request.name,
        version=request.version if request.HasField("version") else None,
        input=request.input if request.HasField("input") else None,
        scheduledStartTimestamp=request.scheduledStartTimestamp
        if request.HasField("scheduledStartTimestamp")
        else None,
        parentTraceContext=request.parentTraceContext if request.HasField("parentTraceContext") else None,
        tags=request.tags,
    )
    return create(changes, world, hub, instance_id, event, now=now)


def start_from_entity(
    changes: Changes, world: World, hub: int, action: pb.StartNewOrchestrationAction, now: int
) -> None:
    """Start an instance for an entity. An id that is taken by a live instance is left alone."""
    instance_id = action.instanceId or world.new_id()
    if instance_id.startswith("@"):
        # An action cannot be refused any more: its operation has succeeded.
        changes.dropped.append((instance_id, f"cannot start '{action.name}': ids with '@' are entities'"))
        return
    existing = world.instance(hub, instance_id)
    if existing is not None:
        if not existing.terminal:
            return
        changes.delete(existing)
    event = pb.ExecutionStartedEvent(
        name=action.name,
        version=action.version if action.HasField("version") else None,
        input=action.input if action.HasField("input") else None,
        scheduledStartTimestamp=action.scheduledTime if action.HasField("scheduledTime") else None,
        parentTraceContext=action.parentTraceContext if action.HasField("parentTraceContext") else None,
    )
    create(changes, world, hub, instance_id, event, now=now)


def start_child(
    changes: Changes,
    world: World,
    parent: Instance,
    task_id: int,
    event: pb.ExecutionStartedEvent,
    child_id: str,
    now: int,
) -> None:
    """Start a sub-orchestration.

    An ended instance of that id is replaced: retries and repeated generations use the same id. A live one
    is left alone and the parent gets a failure.
    """
    if child_id.startswith("@"):
        failure = events.failure(
            "InvalidInstanceId", f"cannot start sub-orchestration '{child_id}': ids with '@' are entities'"
        )
        changes.post(parent, events.child_failed(now, task_id, failure), MessageKind.RESULT)
        return
    existing = world.instance(parent.hub, child_id)
    if existing is not None:
        if not existing.terminal:
            failure = events.failure(
                "InstanceAlreadyExists",
                f"cannot start sub-orchestration '{child_id}': an instance of that id is running",
            )
            changes.post(parent, events.child_failed(now, task_id, failure), MessageKind.RESULT)
            return
        changes.delete(existing)
    link = event.parentInstance
    link.taskScheduledId = task_id
    link.name.value = parent.name
    if parent.version is not None:
        link.version.value = parent.version
    link.orchestrationInstance.instanceId = parent.id
    link.orchestrationInstance.executionId.value = parent.execution_id
    create(
        changes,
        world,
        parent.hub,
        child_id,
        event,
        now=now,
        parent=Parent(parent.row, parent.id, parent.execution_id, task_id),
    )


def stop_work(changes: Changes, world: World, instance: Instance, now: int) -> None:
    """Take back everything that an execution has under way: turn, activities, timers, locks."""
    instance.turn = None
    activities = world.activities(instance)
    if activities:
        for activity in activities:
            activity.done = True
            world.close_activity(activity)
        changes.drop_activities(instance)
    if instance.has_timers:
        changes.drop_timers(instance)
        instance.has_timers = False
    entities.release_all(changes, world, instance, now)


def replace(changes: Changes, world: World, existing: Instance, now: int) -> None:
    """Remove an instance so that its id is free. A parent that waits for it is told."""
    if not existing.terminal:
        stop_work(changes, world, existing, now)
        existing.status = TERMINATED
        notify_parent(changes, world, existing, now)
    changes.delete(existing)


def finish(
    changes: Changes,
    world: World,
    instance: Instance,
    *,
    status: int,
    output: str | None,
    failure: pb.TaskFailureDetails | None,
    now: int,
) -> bytes:
    """End an instance and tell its parent.

    Returns:
        The ``executionCompleted`` event, for the caller to append.
    """
    changes.clear_inbox(instance)
    stop_work(changes, world, instance, now)
    instance.status = status
    instance.output = output
    instance.failure = failure.SerializeToString() if failure is not None else None
    instance.completed = instance.updated = now
    instance.start_at = None
    changes.touch(instance)
    changes.changed[instance.row] = instance
    notify_parent(changes, world, instance, now)
    return events.execution_completed(now, status, output, failure)


def notify_parent(changes: Changes, world: World, instance: Instance, now: int) -> None:
    """Deliver a child's end to the execution that started it, if that still runs."""
    link = instance.parent
    if link is None:
        return
    parent = world.instance(instance.hub, link.instance_id)
    if parent is None or parent.terminal or parent.execution_id != link.execution_id:
        return
    changes.post(
        parent, _outcome(instance, link.task_id, now, world.limits.payload_bytes), MessageKind.RESULT
    )


def _outcome(instance: Instance, task_id: int, now: int, limit: int) -> bytes:
    output = instance.output
    if instance.status == COMPLETED:
        if output is not None and len(output) > limit // 4 and (size := len(output.encode())) > limit:
            return events.child_failed(
                now, task_id, events.too_large(f"result of '{instance.id}'", size, limit)
            )
        return events.child_completed(now, task_id, output)
    if instance.failure is not None:
        return events.child_failed(now, task_id, pb.TaskFailureDetails.FromString(instance.failure))
    word = "terminated" if instance.status == TERMINATED else "failed"
    return events.child_failed(
        now,
        task_id,
        events.failure("SubOrchestrationFailed", f"sub-orchestration '{instance.id}' was {word}"),
    )


def end_now(
    changes: Changes,
    world: World,
    instance: Instance,
    *,
    status: int,
    output: str | None,
    failure: pb.TaskFailureDetails | None,
    now: int,
    before: list[bytes] | None = None,
) -> None:
    """End an instance without a turn: ``before`` and the end are appended to its history.

    If it has had no turn, what it was started with goes before them: its input is nowhere else.
    """
    appended = [
        *_start_in_inbox(instance),
        *(before or []),
        finish(changes, world, instance, status=status, output=output, failure=failure, now=now),
    ]
    changes.append_history(instance, wire.fields(wire.PAST_EVENT, appended), len(appended))


def _start_in_inbox(instance: Instance) -> list[bytes]:
    if instance.history_seq or not instance.inbox:
        return []
    first = instance.inbox[0].event
    return [first] if pb.HistoryEvent.FromString(first).HasField("executionStarted") else []


def fail(
    changes: Changes, world: World, instance: Instance, failure: pb.TaskFailureDetails, now: int
) -> None:
    """Fail an instance that cannot go on."""
    end_now(changes, world, instance, status=FAILED, output=None, failure=failure, now=now)


def scheduled_start(changes: Changes, instance: Instance) -> None:
    """The time of a scheduled start has come."""
    if instance.start_at is not None and not instance.terminal:
        instance.start_at = None
        changes.touch(instance)
        changes.ready[instance.row] = instance
