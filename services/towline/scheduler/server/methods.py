"""The RPCs of ``TaskHubSidecarService`` by name: the method that answers and the type of its request."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, TypeAlias

from durabletask.internal import orchestrator_service_pb2 as pb

from towline.scheduler.engine.model import PENDING, Instance
from towline.scheduler.server.service import Reply, Service

Handler: TypeAlias = Callable[[Service, Any, int], Awaitable[Reply]]

Change: TypeAlias = Callable[[Service, Any, int], Reply]
"""Makes a change and returns the answer that is due when the change is on disk."""

CHANGES: Final[Mapping[str, tuple[Change, Any]]] = {
    "StartInstance": (Service.start_instance, pb.CreateInstanceRequest),
    "RaiseEvent": (Service.raise_event, pb.RaiseEventRequest),
    "TerminateInstance": (Service.terminate, pb.TerminateRequest),
    "SuspendInstance": (Service.suspend, pb.SuspendRequest),
    "ResumeInstance": (Service.resume, pb.ResumeRequest),
    "RewindInstance": (Service.rewind, pb.RewindInstanceRequest),
    "RestartInstance": (Service.restart, pb.RestartInstanceRequest),
    "SignalEntity": (Service.signal_entity, pb.SignalEntityRequest),
    "CompleteOrchestratorTask": (Service.complete_turn, pb.OrchestratorResponse),
    "CompleteActivityTask": (Service.complete_activity, pb.ActivityResponse),
    "CompleteEntityTask": (Service.complete_batch, pb.EntityBatchResult),
    "AbandonTaskOrchestratorWorkItem": (Service.abandon, pb.AbandonOrchestrationTaskRequest),
    "AbandonTaskActivityWorkItem": (Service.abandon, pb.AbandonActivityTaskRequest),
    "AbandonTaskEntityWorkItem": (Service.abandon, pb.AbandonEntityTaskRequest),
}

WAITS: Final[Mapping[str, Callable[[Instance], bool]]] = {
    "WaitForInstanceStart": lambda instance: instance.status != PENDING,
    "WaitForInstanceCompletion": lambda instance: instance.terminal,
}
"""Calls that wait until an instance has come so far."""

UNARY: Final[Mapping[str, tuple[Handler, Any]]] = {
    "GetInstance": (Service.get_instance, pb.GetInstanceRequest),
    "QueryInstances": (Service.query_instances, pb.QueryInstancesRequest),
    "ListInstanceIds": (Service.list_ids, pb.ListInstanceIdsRequest),
    "PurgeInstances": (Service.purge, pb.PurgeInstancesRequest),
    "SkipGracefulOrchestrationTerminations": (
        Service.skip_terminations,
        pb.SkipGracefulOrchestrationTerminationsRequest,
    ),
    "GetEntity": (Service.get_entity, pb.GetEntityRequest),
    "QueryEntities": (Service.query_entities, pb.QueryEntitiesRequest),
    "CleanEntityStorage": (Service.clean_entities, pb.CleanEntityStorageRequest),
}

HubHandler: TypeAlias = Callable[[Service, Any, int, str], Awaitable[Reply]]

HUB_UNARY: Final[Mapping[str, tuple[HubHandler, Any]]] = {
    "CreateTaskHub": (Service.create_hub, pb.CreateTaskHubRequest),
    "DeleteTaskHub": (Service.delete_hub, pb.DeleteTaskHubRequest),
}

NO_HUB: Final = frozenset(
    {
        "CompleteOrchestratorTask",
        "CompleteActivityTask",
        "CompleteEntityTask",
        "AbandonTaskOrchestratorWorkItem",
        "AbandonTaskActivityWorkItem",
        "AbandonTaskEntityWorkItem",
    }
)
"""Calls that need no task hub: a completion token names its work."""
