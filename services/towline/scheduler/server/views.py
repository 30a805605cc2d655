"""What clients see of instances and entities."""

from __future__ import annotations

from durabletask.internal import orchestrator_service_pb2 as pb

from towline.scheduler.engine.model import FAILED, Entity, Instance
from towline.scheduler.engine.wire import set_timestamp, text, timestamp


def instance_state(instance: Instance, *, payloads: bool, data: str | None = None) -> pb.OrchestrationState:
    """State of an instance; ``data`` is its input, shown with ``payloads`` only."""
    state = pb.OrchestrationState()
    fill_instance_state(state, instance, payloads=payloads, data=data)
    return state


def fill_instance_state(
    state: pb.OrchestrationState, instance: Instance, *, payloads: bool, data: str | None = None
) -> None:
    """The same, into a message that is part of another."""
    state.instanceId = instance.id
    state.name = instance.name
    state.orchestrationStatus = instance.status  # pyright: ignore[reportAttributeAccessIssue]  # an int is fine
    state.executionId.value = instance.execution_id
    set_timestamp(state.createdTimestamp, instance.created)
    set_timestamp(state.lastUpdatedTimestamp, instance.updated)
    if instance.version is not None:
        state.version.value = instance.version
    if instance.custom_status is not None:
        state.customStatus.value = instance.custom_status
    start = pb.ExecutionStartedEvent.FromString(instance.start)
    if start.tags:
        state.tags.update(start.tags)
    if start.HasField("scheduledStartTimestamp"):
        state.scheduledStartTimestamp.CopyFrom(start.scheduledStartTimestamp)
    if instance.completed is not None:
        set_timestamp(state.completedTimestamp, instance.completed)
    if instance.parent is not None:
        state.parentInstanceId.value = instance.parent.instance_id
    # Clients take any failure details for a failure.
    if instance.failure is not None and instance.status == FAILED:
        state.failureDetails.ParseFromString(instance.failure)
    if payloads:
        if data is not None:
            state.input.value = data
        if instance.output is not None:
            state.output.value = instance.output


def entity_metadata(entity: Entity, *, include_state: bool) -> pb.EntityMetadata:
    """Metadata of an entity."""
    return pb.EntityMetadata(
        instanceId=entity.id,
        lastModifiedTime=timestamp(entity.modified),
        backlogQueueSize=len(entity.queue),
        lockedBy=text(entity.lock_holder),
        serializedState=text(entity.state) if include_state else None,
    )
