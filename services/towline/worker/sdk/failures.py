"""Answers for items that cannot be carried out, and the size of what is in a message."""

from __future__ import annotations

from typing import Any

import durabletask.internal.orchestrator_service_pb2 as pb
from durabletask.internal import helpers
from google.protobuf import wrappers_pb2

from towline.worker.sdk.execution import Answer


def failed_turn(request: Any, token: str, error: Exception) -> pb.OrchestratorResponse:
    """The answer that fails the instance."""
    complete = pb.CompleteOrchestrationAction(
        orchestrationStatus=pb.ORCHESTRATION_STATUS_FAILED, failureDetails=_failure(error)
    )
    return pb.OrchestratorResponse(
        instanceId=request.instanceId,
        actions=[pb.OrchestratorAction(id=-1, completeOrchestration=complete)],
        completionToken=token,
        orchestrationTraceContext=request.orchestrationTraceContext,
    )


def failed_activity(request: Any, token: str, error: Exception) -> Answer:
    """The answer that fails the activity."""
    message = pb.ActivityResponse(
        instanceId=request.orchestrationInstance.instanceId,
        taskId=request.taskId,
        failureDetails=_failure(error),
        completionToken=token,
    )
    return Answer("CompleteActivityTask", message)


def failed_batch(request: Any, token: str, error: Exception) -> Answer:
    """The answer that fails each operation of an entity's batch and leaves its state as it is."""
    infos: list[pb.OperationInfo] = []
    if isinstance(request, pb.EntityRequest):
        request, infos = helpers.convert_to_entity_batch_request(request)
    failed = pb.OperationResult(failure=pb.OperationResultFailure(failureDetails=_failure(error)))
    message = pb.EntityBatchResult(
        results=[failed] * len(request.operations), completionToken=token, operationInfos=infos
    )
    if request.HasField("entityState"):
        message.entityState.CopyFrom(request.entityState)
    return Answer("CompleteEntityTask", message)


def _failure(error: Exception) -> pb.TaskFailureDetails:
    return pb.TaskFailureDetails(errorType=type(error).__name__, errorMessage=str(error))


def largest_text_bytes(message: Any) -> int:
    """Size of the largest text in a message that may be put aside, in bytes of UTF-8."""
    if isinstance(message, wrappers_pb2.StringValue):
        return len(message.value.encode())
    largest = 0
    for descriptor, value in message.ListFields():
        if descriptor.message_type is None:
            continue
        parts = value if descriptor.is_repeated else (value,)
        if descriptor.message_type.GetOptions().map_entry:
            parts = [part for part in value.values() if hasattr(part, "ListFields")]
        largest = max([largest, *(largest_text_bytes(part) for part in parts)])
    return largest
