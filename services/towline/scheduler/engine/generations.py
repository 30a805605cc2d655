"""Continue-as-new: the next generation of an instance."""

from __future__ import annotations

from durabletask.internal import orchestrator_service_pb2 as pb

from towline.scheduler.engine import events, lifecycle
from towline.scheduler.engine.changes import Changes
from towline.scheduler.engine.model import RUNNING, SUSPENDED, Instance, MessageKind
from towline.scheduler.engine.ports import World
from towline.scheduler.engine.wire import timestamp


def continue_as_new(
    changes: Changes, world: World, instance: Instance, end: pb.CompleteOrchestrationAction, now: int
) -> None:
    """Start the instance over with new input and an empty history.

    It keeps its id, name, creation time, tags, parent and trace. Results of what the old execution asked
    for are dropped: action ids start again at 1, so they would land on the new generation's tasks. Events
    that arrived meanwhile are kept, after those that the worker hands over.
    """
    survivors = [message for message in instance.inbox if message.kind == MessageKind.EXTERNAL]
    lifecycle.stop_work(changes, world, instance, now)
    changes.clear_history(instance)
    if instance.inbox:
        changes.clear_inbox(instance)
    instance.execution_id = world.new_id()
    start = pb.ExecutionStartedEvent.FromString(instance.start)
    start.orchestrationInstance.executionId.value = instance.execution_id
    if end.HasField("newVersion"):
        start.version.CopyFrom(end.newVersion)
        instance.version = end.newVersion.value
    start.ClearField("scheduledStartTimestamp")
    instance.start = start.SerializeToString()
    instance.input = end.result.value if end.HasField("result") else None
    instance.input_known = True
    if end.HasField("result"):
        start.input.CopyFrom(end.result)
    instance.trace = None
    instance.output = None
    instance.failure = None
    instance.custom_inherited = instance.custom_status is not None
    if instance.status != SUSPENDED:
        instance.status = RUNNING
    changes.touch(instance)
    changes.post(instance, events.execution_started(now, start), MessageKind.RESULT)
    for event in end.carryoverEvents:
        if not event.timestamp.seconds:
            event.timestamp.CopyFrom(timestamp(now))  # the worker keeps only name and data
        changes.post(instance, event.SerializeToString(), MessageKind.EXTERNAL)
    for message in survivors:
        changes.post(instance, message.event, MessageKind.EXTERNAL)
