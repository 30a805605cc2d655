"""The RPCs of ``TaskHubSidecarService`` by name: the method that answers and the type of its request."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, TypeAlias

from durabletask.internal import orchestrator_service_pb2 as pb
from google.protobuf.empty_pb2 import Empty

from towline.scheduler.server.service import Reply, Service

Handler: TypeAlias = Callable[[Service, Any, int], Awaitable[Reply]]

UNARY: Final[Mapping[str, tuple[Handler, Any]]] = {
    "Hello": (Service.hello, Empty),
    "StartInstance": (Service.start_instance, pb.CreateInstanceRequest),
    "GetInstance": (Service.get_instance, pb.GetInstanceRequest),
    "WaitForInstanceStart": (Service.wait_for_start, pb.GetInstanceRequest),
    "WaitForInstanceCompletion": (Service.wait_for_completion, pb.GetInstanceRequest),
    "RaiseEvent": (Service.raise_event, pb.RaiseEventRequest),
    "TerminateInstance": (Service.terminate, pb.TerminateRequest),
    "SuspendInstance": (Service.suspend, pb.SuspendRequest),
    "ResumeInstance": (Service.resume, pb.ResumeRequest),
    "RewindInstance": (Service.rewind, pb.RewindInstanceRequest),
    "RestartInstance": (Service.restart, pb.RestartInstanceRequest),
    "QueryInstances": (Service.query_instances, pb.QueryInstancesRequest),
    "ListInstanceIds": (Service.list_ids, pb.ListInstanceIdsRequest),
    "PurgeInstances": (Service.purge, pb.PurgeInstancesRequest),
    "SkipGracefulOrchestrationTerminations": (
        Service.skip_terminations,
        pb.SkipGracefulOrchestrationTerminationsRequest,
    ),
    "SignalEntity": (Service.signal_entity, pb.SignalEntityRequest),
    "GetEntity": (Service.get_entity, pb.GetEntityRequest),
    "QueryEntities": (Service.query_entities, pb.QueryEntitiesRequest),
    "CleanEntityStorage": (Service.clean_entities, pb.CleanEntityStorageRequest),
    "CompleteOrchestratorTask": (Service.complete_turn, pb.OrchestratorResponse),
    "CompleteActivityTask": (Service.complete_activity, pb.ActivityResponse),
    "CompleteEntityTask": (Service.complete_batch, pb.EntityBatchResult),
    "AbandonTaskOrchestratorWorkItem": (Service.abandon, pb.AbandonOrchestrationTaskRequest),
    "AbandonTaskActivityWorkItem": (Service.abandon, pb.AbandonActivityTaskRequest),
    "AbandonTaskEntityWorkItem": (Service.abandon, pb.AbandonEntityTaskRequest),
}

HubHandler: TypeAlias = Callable[[Service, Any, int, str], Awaitable[Reply]]

HUB_UNARY: Final[Mapping[str, tuple[HubHandler, Any]]] = {
    "CreateTaskHub": (Service.create_hub, pb.CreateTaskHubRequest),
    "DeleteTaskHub": (Service.delete_hub, pb.DeleteTaskHubRequest),
}

NO_HUB: Final = frozenset(
    {
        "Hello",
        "CompleteOrchestratorTask",
        "CompleteActivityTask",
        "CompleteEntityTask",
        "AbandonTaskOrchestratorWorkItem",
        "AbandonTaskActivityWorkItem",
        "AbandonTaskEntityWorkItem",
        "CreateTaskHub",
        "DeleteTaskHub",
    }
)
"""Calls that need no task hub: a completion token names its work."""
