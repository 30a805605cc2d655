"""Talking to the scheduler as the SDK's worker does: channel, stub, metadata, the stream's request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import durabletask.internal.orchestrator_service_pb2 as pb
import durabletask.internal.orchestrator_service_pb2_grpc as pb_grpc
import grpc
import grpc.aio
from azure.core.credentials import AccessToken, TokenCredential
from durabletask.azuremanaged.worker import DurableTaskSchedulerWorker
from durabletask.internal.grpc_interceptor import DefaultClientInterceptorImpl
from durabletask.payload.store import PayloadStore
from durabletask.worker import TaskHubGrpcWorker, WorkItemFilters
from google.protobuf import empty_pb2

from towline import http2

Worker = DurableTaskSchedulerWorker
_FAR_FUTURE: Final = 4_102_444_800
"""2100-01-01, as a token's expiry."""


def payload_store(worker: TaskHubGrpcWorker) -> PayloadStore | None:
    """The worker's store for large payloads."""
    return worker._payload_store  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]


def is_taking_work(worker: TaskHubGrpcWorker) -> bool:
    """Whether the worker's own loop is alive (or was never started)."""
    loop = worker._runLoop  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
    return loop is None or loop.is_alive()


def is_connected(worker: TaskHubGrpcWorker) -> bool:
    """Whether the worker has a work item stream open."""
    stream = worker._response_stream  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
    return stream is not None and bool(stream.is_active())


def fixed_token(token: str) -> TokenCredential:
    """A credential that always shows the same bearer token."""

    class FixedToken:
        def get_token(self, *scopes: str, **options: Any) -> AccessToken:
            del scopes, options
            return AccessToken(token, _FAR_FUTURE)

    return FixedToken()


def prepare(worker: Worker) -> None:
    """What the SDK's own `start` does before it takes work."""
    if worker._auto_generate_work_item_filters:  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
        worker._work_item_filters = WorkItemFilters._from_registry(worker._registry)  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]


def work_items_request(
    worker: Worker, max_entity_batches: int, *, large_payloads: bool
) -> pb.GetWorkItemsRequest:
    """The request that opens the stream of work items.

    As the SDK makes it, but for a limit for entities and the offer to fetch large histories.
    """
    limits = worker.concurrency_options
    capabilities: list[Any] = [
        pb.WORKER_CAPABILITY_HISTORY_STREAMING,
        *([pb.WORKER_CAPABILITY_LARGE_PAYLOADS] if large_payloads else []),
        *sorted(worker._capabilities),  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
    ]
    request = pb.GetWorkItemsRequest(
        maxConcurrentOrchestrationWorkItems=limits.maximum_concurrent_orchestration_work_items,
        maxConcurrentActivityWorkItems=limits.maximum_concurrent_activity_work_items,
        maxConcurrentEntityWorkItems=max_entity_batches,
        capabilities=capabilities,
    )
    filters = worker._work_item_filters  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
    if filters is not None:
        request.workItemFilters.CopyFrom(filters._to_grpc())  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
    return request


def async_channel(worker: Worker, options: Sequence[tuple[str, Any]]) -> grpc.aio.Channel:
    """A channel of the running loop to the worker's scheduler."""
    address = worker._host_address  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
    secure = worker._secure_channel  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
    scheme, separator, rest = address.partition("://")
    if separator:
        secure, address = scheme.lower() in {"https", "grpcs"}, rest
    if secure:
        return grpc.aio.secure_channel(address, grpc.ssl_channel_credentials(), options=options)
    return grpc.aio.insecure_channel(address, options=options)


def plain_address(worker: Worker) -> tuple[str, int] | None:
    """Host and port of a scheduler that is spoken to in plain text; None for any other address."""
    return http2.plain_address(
        worker._host_address,  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
        secure=worker._secure_channel,  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
    )


def method_path(method: str) -> str:
    """The path of one of the scheduler's methods."""
    return f"/TaskHubSidecarService/{method}"


def stub(channel: grpc.aio.Channel) -> Any:
    """The scheduler's service on `channel`."""
    return pb_grpc.TaskHubSidecarServiceStub(channel)


def read_work_item(data: bytes) -> Any:
    """A work item as it came over the stream."""
    return pb.WorkItem.FromString(data)


def history_request(request: pb.OrchestratorRequest) -> Any:
    """The request for the history that a turn's work item has left out."""
    return pb.StreamInstanceHistoryRequest(
        instanceId=request.instanceId, executionId=request.executionId, forWorkItemProcessing=True
    )


def read_history_chunk(data: bytes) -> Any:
    """A part of a history as it came over the stream."""
    return pb.HistoryChunk.FromString(data)


def hello() -> Any:
    """The message that greets the scheduler."""
    return empty_pb2.Empty()


@dataclass
class _CallDetails(grpc.ClientCallDetails):
    method: Any = None
    timeout: Any = None
    metadata: Any = None
    credentials: Any = None
    wait_for_ready: Any = None
    compression: Any = None


def call_metadata(worker: Worker) -> tuple[tuple[str, str], ...]:
    """Metadata of each call: task hub, worker, credential. May go to the network for a new token; blocks."""
    details: Any = _CallDetails()
    for interceptor in worker._interceptors or ():  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
        if isinstance(interceptor, DefaultClientInterceptorImpl):
            details = interceptor._intercept_call(details)  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
    return tuple(details.metadata or ())
