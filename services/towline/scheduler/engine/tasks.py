"""Activities and timers: their results become messages of the instance that asked."""

from __future__ import annotations

from durabletask.internal import orchestrator_service_pb2 as pb

from towline.scheduler.engine import entities, events, lifecycle
from towline.scheduler.engine.changes import Changes
from towline.scheduler.engine.errors import InvalidRequestError
from towline.scheduler.engine.model import Activity, Instance, MessageKind, Timer, TimerKind
from towline.scheduler.engine.ports import World


def complete_activity(
    changes: Changes, world: World, activity: Activity, response: pb.ActivityResponse, now: int
) -> None:
    """Record an activity's result, once. Only ``failureDetails`` being present makes it a failure."""
    if response.HasField("failureDetails"):
        event = events.task_failed(now, activity.task_id, response.failureDetails)
    else:
        result = response.result.value if response.HasField("result") else None
        event = events.task_completed(now, activity.task_id, result)
    limit = world.limits.payload_bytes
    if len(event) > limit:
        failure = events.too_large(f"result of activity '{activity.name}'", len(event), limit)
        event = events.task_failed(now, activity.task_id, failure)
    _deliver(changes, world, activity, event)


def fail_activity(
    changes: Changes, world: World, activity: Activity, failure: pb.TaskFailureDetails, now: int
) -> None:
    """Fail an activity that no worker will answer for."""
    _deliver(changes, world, activity, events.task_failed(now, activity.task_id, failure))


def _deliver(changes: Changes, world: World, activity: Activity, event: bytes) -> None:
    activity.done = True
    world.close_activity(activity)
    changes.rows.append(("delete_activity", (activity.row,)))
    instance = caller(world, activity.hub, activity.instance_id, activity.execution_id)
    if instance is not None:
        changes.post(instance, event, MessageKind.RESULT)


def caller(world: World, hub: int, instance_id: str, execution_id: str) -> Instance | None:
    """The instance, if the execution that asked is still the one that runs."""
    instance = world.instance(hub, instance_id)
    if instance is None or instance.terminal or instance.execution_id != execution_id:
        return None
    return instance


def lost_activity(changes: Changes, world: World, activity: Activity, now: int) -> bool:
    """An activity comes back without a result.

    Returns:
        Whether to hand it out again; if not, it has been failed as poison.
    """
    activity.losses += 1
    if activity.losses < world.limits.losses:
        return True
    message = f"activity '{activity.name}' was handed out {activity.losses} times and lost each time"
    fail_activity(changes, world, activity, events.failure("PoisonWorkItem", message), now)
    return False


def fire(changes: Changes, world: World, timer: Timer, now: int) -> None:
    """A timer is due."""
    changes.rows.append(("delete_timer", (timer.row,)))
    if timer.kind == TimerKind.SIGNAL:
        request = pb.SignalEntityRequest.FromString(timer.payload)
        request.ClearField("scheduledTime")
        try:
            entities.signal(changes, world, timer.hub, request, now)
        except InvalidRequestError:
            return
        return
    instance = caller(world, timer.hub, timer.target_id, timer.execution_id)
    if instance is None:
        return
    if timer.kind == TimerKind.START:
        lifecycle.scheduled_start(changes, instance)
        return
    # The turn that sees the timer must not lie before it, whatever the clock does in between.
    instance.turn_at = max(instance.turn_at, timer.fire_at - 1)
    changes.post(instance, timer.payload, MessageKind.RESULT)
