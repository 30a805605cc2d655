"""Stock clients and workers of one task hub."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Sequence
from typing import Final

import grpc
from durabletask.client import TaskHubGrpcClient
from durabletask.grpc_options import GrpcChannelOptions, GrpcWorkerResiliencyOptions
from durabletask.internal import orchestrator_service_pb2 as pb
from durabletask.internal.orchestrator_service_pb2_grpc import TaskHubSidecarServiceStub
from durabletask.worker import ConcurrencyOptions, TaskHubGrpcWorker, VersioningOptions
from tests.conformance.hand_worker import HandWorker
from tests.conformance.processes import ServerProcess
from tests.conformance.support import unique

QUIET: Final = logging.getLogger("towline.conformance.sdk")
QUIET.setLevel(logging.CRITICAL)
# A stock worker waits up to 30 s between two tries to reconnect; tests that restart the server need less.
FAST_RECONNECT: Final = GrpcWorkerResiliencyOptions(
    reconnect_backoff_base_seconds=0.1, reconnect_backoff_cap_seconds=0.5
)
# gRPC keeps its own reconnect backoff per channel, from 1 s to 2 min.
FAST_CHANNEL: Final = GrpcChannelOptions(
    raw_options=[
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 500),
    ]
)


class Hub:
    """One task hub of one server: stock clients and workers, stopped by ``close``."""

    def __init__(self, server: ServerProcess, name: str | None = None) -> None:
        self.server = server
        self.name = name if name is not None else unique("hub")
        self._exits = contextlib.ExitStack()

    @property
    def metadata(self) -> list[tuple[str, str]]:
        return [("taskhub", self.name)]

    def client(self) -> TaskHubGrpcClient:
        made = TaskHubGrpcClient(
            host_address=self.server.address,
            metadata=self.metadata,
            logger=QUIET,
            channel_options=FAST_CHANNEL,
        )
        self._exits.callback(made.close)
        return made

    def worker(
        self,
        *,
        orchestrators: Sequence[Callable[..., object]] = (),
        activities: Sequence[Callable[..., object]] = (),
        entities: Sequence[object] = (),
        concurrency: ConcurrencyOptions | None = None,
        versioning: VersioningOptions | None = None,
        filters: bool = False,
        start: bool = True,
    ) -> TaskHubGrpcWorker:
        made = TaskHubGrpcWorker(
            host_address=self.server.address,
            metadata=self.metadata,
            logger=QUIET,
            channel_options=FAST_CHANNEL,
            resiliency_options=FAST_RECONNECT,
            concurrency_options=concurrency,
        )
        for orchestrator in orchestrators:
            made.add_orchestrator(orchestrator)
        for activity in activities:
            made.add_activity(activity)
        for entity in entities:
            made.add_entity(entity)  # type: ignore[arg-type]
        if versioning is not None:
            made.use_versioning(versioning)
        if filters:
            made.use_work_item_filters()
        if start:
            made.start()
        self._exits.callback(made.stop)
        return made

    def stub(self) -> TaskHubSidecarServiceStub:
        """The protocol itself, for what the stock client cannot ask."""
        channel = self._channel()
        # Beside other tests the server may take longer to take a connection than one is tried for here, and a
        # call fails with the first try.
        grpc.channel_ready_future(channel).result(timeout=10)
        return TaskHubSidecarServiceStub(channel)

    def hand_worker(
        self,
        *,
        orchestrations: int = 100,
        activities: int = 100,
        entities: int = 100,
        fetches_history: bool = False,
    ) -> HandWorker:
        made = HandWorker(
            self._channel(),
            pb.GetWorkItemsRequest(
                maxConcurrentOrchestrationWorkItems=orchestrations,
                maxConcurrentActivityWorkItems=activities,
                maxConcurrentEntityWorkItems=entities,
                capabilities=[pb.WORKER_CAPABILITY_HISTORY_STREAMING] if fetches_history else [],
            ),
        )
        self._exits.callback(made.close)
        return made

    def _channel(self) -> grpc.Channel:
        options = [*FAST_CHANNEL.raw_options, ("grpc.use_local_subchannel_pool", 1)]
        channel = grpc.insecure_channel(self.server.address, options=options)
        self._exits.callback(channel.close)
        return grpc.intercept_channel(channel, _WithMetadata(self.metadata))

    def close(self) -> None:
        self._exits.close()


class _CallDetails(grpc.ClientCallDetails):
    def __init__(self, base: grpc.ClientCallDetails, metadata: list[tuple[str, str]]) -> None:
        self.method = base.method
        self.timeout = base.timeout
        self.metadata = [*(base.metadata or ()), *metadata]
        self.credentials = base.credentials
        self.wait_for_ready = base.wait_for_ready
        self.compression = base.compression


class _WithMetadata(grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor):
    def __init__(self, metadata: list[tuple[str, str]]) -> None:
        self._metadata = metadata

    def intercept_unary_unary(self, continuation, client_call_details, request):  # type: ignore[no-untyped-def]
        return continuation(_CallDetails(client_call_details, self._metadata), request)

    def intercept_unary_stream(self, continuation, client_call_details, request):  # type: ignore[no-untyped-def]
        return continuation(_CallDetails(client_call_details, self._metadata), request)
