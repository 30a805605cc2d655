"""What clients do to instances after their start: events, suspend, resume, terminate, restart, purge.

All of it works without any worker.
"""

from __future__ import annotations

from durabletask.internal import orchestrator_service_pb2 as pb

from towline.scheduler.engine import events, lifecycle, wire
from towline.scheduler.engine.changes import Changes
from towline.scheduler.engine.errors import NotFoundError, PreconditionError
from towline.scheduler.engine.model import PENDING, RUNNING, SUSPENDED, TERMINATED, Instance, MessageKind
from towline.scheduler.engine.ports import World


def terminate(
    changes: Changes,
    world: World,
    hub: int,
    instance_id: str,
    output: str | None,
    *,
    recursive: bool,
    now: int,
) -> bool:
    """End an instance, and with ``recursive`` all its live descendants.

    Returns:
        Whether the instance itself was live. Ending a finished or unknown one changes nothing.
    """
    instance = world.instance(hub, instance_id)
    if instance is None:
        return False
    live = not instance.terminal
    waiting = [instance]
    seen = {instance.row}
    while waiting:
        current = waiting.pop()
        # Parents first: a child's end must not reach a parent that is being terminated.
        if not current.terminal:
            terminated = events.execution_terminated(now, output, recurse=recursive)
            lifecycle.end_now(
                changes,
                world,
                current,
                status=TERMINATED,
                output=output,
                failure=None,
                now=now,
                before=[terminated],
            )
        if recursive:
            for child in world.children(current):
                if child.row not in seen:
                    seen.add(child.row)
                    waiting.append(child)
    return live


def raise_event(
    changes: Changes, world: World, hub: int, instance_id: str, name: str, data: str | None, now: int
) -> None:
    """Deliver an external event. To a finished instance it has no effect.

    Raises:
        NotFoundError: No such instance.
        TooLargeError: Too much waits for it already.
    """
    instance = world.instance(hub, instance_id)
    if instance is None:
        raise NotFoundError(f"no orchestration instance with the id '{instance_id}'")
    if not instance.terminal:
        _check_room(world, instance)
        changes.post(instance, events.event_raised(now, name, data), MessageKind.EXTERNAL)


def _check_room(world: World, instance: Instance) -> None:
    world.limits.check_room(f"inbox of '{instance.id}'", len(instance.inbox), instance.inbox_bytes)


def suspend(changes: Changes, world: World, hub: int, instance_id: str, reason: str | None, now: int) -> None:
    """Hand out no further turn until :func:`resume`. Messages are kept meanwhile.

    Raises:
        NotFoundError: No such instance.
        TooLargeError: Too much waits for it already.
    """
    instance = world.instance(hub, instance_id)
    if instance is None:
        raise NotFoundError(f"no orchestration instance with the id '{instance_id}'")
    if instance.terminal or instance.status == SUSPENDED:
        return
    _check_room(world, instance)
    changes.post(instance, events.execution_suspended(now, reason), MessageKind.EXTERNAL)
    _set_status(changes, instance, SUSPENDED, now)


def resume(changes: Changes, world: World, hub: int, instance_id: str, reason: str | None, now: int) -> None:
    """Go on after :func:`suspend`.

    Raises:
        NotFoundError: No such instance.
    """
    instance = world.instance(hub, instance_id)
    if instance is None:
        raise NotFoundError(f"no orchestration instance with the id '{instance_id}'")
    if instance.status != SUSPENDED:
        return
    changes.post(instance, events.execution_resumed(now, reason), MessageKind.EXTERNAL)
    _set_status(changes, instance, RUNNING if instance.turn_at else PENDING, now)


def _set_status(changes: Changes, instance: Instance, status: int, now: int) -> None:
    instance.status = status
    instance.updated = now
    changes.touch(instance)
    changes.changed[instance.row] = instance


def restart(
    changes: Changes, world: World, hub: int, instance_id: str, *, new_id: bool, now: int
) -> Instance:
    """Run a finished instance again with the same name, input, version and tags.

    Raises:
        NotFoundError: No such instance.
        PreconditionError: It has not ended.
    """
    old = world.instance(hub, instance_id)
    if old is None:
        raise NotFoundError(f"no orchestration instance with the id '{instance_id}'")
    if not old.terminal:
        raise PreconditionError(f"orchestration instance '{instance_id}' has not ended")
    was = pb.ExecutionStartedEvent.FromString(old.start)
    event = pb.ExecutionStartedEvent(
        name=was.name,
        version=was.version if was.HasField("version") else None,
        input=wire.text(world.load_input(old)),
        parentTraceContext=was.parentTraceContext if was.HasField("parentTraceContext") else None,
        tags=was.tags,
    )
    if not new_id:
        changes.delete(old)
    return lifecycle.create(changes, world, hub, world.new_id() if new_id else instance_id, event, now=now)


def purge(changes: Changes, world: World, instance: Instance, *, recursive: bool) -> int:
    """Delete a finished instance, and with ``recursive`` its finished descendants.

    Returns:
        How many instances were deleted; 0 if this one has not ended.
    """
    if not instance.terminal:
        return 0
    waiting, count, seen = [instance], 0, {instance.row}
    while waiting:
        current = waiting.pop()
        if recursive:
            for child in world.children(current):
                if child.terminal and child.row not in seen:
                    seen.add(child.row)
                    waiting.append(child)
        changes.delete(current)
        count += 1
    return count
