"""What clients see of instances and entities."""

from __future__ import annotations

from durabletask.internal import orchestrator_service_pb2 as pb

from towline.scheduler.engine.model import FAILED, Entity, Instance
from towline.scheduler.engine.wire import text, timestamp


def instance_state(instance: Instance, *, payloads: bool, data: str | None = None) -> pb.OrchestrationState:
    """State of an instance; ``data`` is its input, shown with ``payloads`` only."""
    start = pb.ExecutionStartedEvent.FromString(instance.start)
    state = pb.OrchestrationState(
        instanceId=instance.id,
        name=instance.name,
        version=text(instance.version),
        createdTimestamp=timestamp(instance.created),
        lastUpdatedTimestamp=timestamp(instance.updated),
        customStatus=text(instance.custom_status),
        executionId=text(instance.execution_id),
        tags=start.tags,
    )
    state.orchestrationStatus = instance.status  # pyright: ignore[reportAttributeAccessIssue]  # an int is fine
    if start.HasField("scheduledStartTimestamp"):
        state.scheduledStartTimestamp.CopyFrom(start.scheduledStartTimestamp)
    if instance.completed is not None:
        state.completedTimestamp.CopyFrom(timestamp(instance.completed))
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
    return state


def entity_metadata(entity: Entity, *, include_state: bool) -> pb.EntityMetadata:
    """Metadata of an entity."""
    return pb.EntityMetadata(
        instanceId=entity.id,
        lastModifiedTime=timestamp(entity.modified),
        backlogQueueSize=len(entity.queue),
        lockedBy=text(entity.lock_holder),
        serializedState=text(entity.state) if include_state else None,
    )
