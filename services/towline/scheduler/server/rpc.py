# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false, reportMissingParameterType=false
# grpcio has no types of its own.
"""Binding of the services to ``grpc.aio``: task hub and token from the metadata, errors to status codes."""

from __future__ import annotations

import hmac
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final

import grpc
from durabletask.internal import orchestrator_service_pb2 as pb

from towline.scheduler.engine.errors import SchedulerError
from towline.scheduler.engine.wire import HEALTH_PING
from towline.scheduler.server.dispatch import DEFAULT_CAPACITY, Stream, filters_of
from towline.scheduler.server.methods import HUB_UNARY, NO_HUB, UNARY
from towline.scheduler.server.runtime import DEFAULT_HUB, Runtime
from towline.scheduler.server.service import Service

_log = logging.getLogger(__name__)
SERVICE_NAME: Final = "TaskHubSidecarService"


def _identity(data: bytes) -> bytes:
    return data


class Binding:
    """Makes gRPC handlers of plain methods."""

    def __init__(self, runtime: Runtime, service: Service, token: str | None) -> None:
        self._runtime = runtime
        self._service = service
        self._token = None if token is None else f"Bearer {token}".encode()

    def metadata(self, context: Any) -> tuple[str, str]:
        """Task hub and worker id of a call.

        Raises:
            PermissionError: A token is asked for and the call has none or a wrong one.
        """
        hub, worker, sent = DEFAULT_HUB, "", b""
        for key, value in context.invocation_metadata() or ():
            if key == "taskhub":
                hub = value or DEFAULT_HUB
            elif key == "workerid":
                worker = value
            elif key == "authorization":
                sent = value.encode() if isinstance(value, str) else value
        if self._token is not None and not hmac.compare_digest(sent, self._token):
            raise PermissionError
        return hub, worker

    def handlers(self) -> Any:
        """Handlers of ``TaskHubSidecarService``."""
        methods: dict[str, Any] = {}
        for name, (method, request_type) in UNARY.items():
            call = self._without_hub(method) if name in NO_HUB else self._with_hub(method)
            methods[name] = unary(call, request_type.FromString)
        for name, (hub_method, request_type) in HUB_UNARY.items():
            methods[name] = unary(self._with_hub_name(hub_method), request_type.FromString)
        methods["GetWorkItems"] = grpc.unary_stream_rpc_method_handler(
            self._get_work_items, pb.GetWorkItemsRequest.FromString, _identity
        )
        methods["StreamInstanceHistory"] = grpc.unary_stream_rpc_method_handler(
            self._stream_history, pb.StreamInstanceHistoryRequest.FromString, _identity
        )
        return grpc.method_handlers_generic_handler(SERVICE_NAME, methods)

    def _without_hub(
        self, method: Callable[[Service, Any, int], Awaitable[bytes]]
    ) -> Callable[[Any, Any], Awaitable[bytes]]:
        service, open_to_all = self._service, self._token is None

        async def call(request: Any, context: Any) -> bytes:
            try:
                if not open_to_all:
                    self.metadata(context)
                return await method(service, request, 0)
            except (SchedulerError, PermissionError) as error:
                return await refuse(context, error)

        return call

    def _with_hub(
        self, method: Callable[[Service, Any, int], Awaitable[bytes]]
    ) -> Callable[[Any, Any], Awaitable[bytes]]:
        service, runtime = self._service, self._runtime

        async def call(request: Any, context: Any) -> bytes:
            try:
                hub, _ = self.metadata(context)
                return await method(service, request, runtime.hub(hub))
            except (SchedulerError, PermissionError) as error:
                return await refuse(context, error)

        return call

    def _with_hub_name(
        self, method: Callable[[Service, Any, int, str], Awaitable[bytes]]
    ) -> Callable[[Any, Any], Awaitable[bytes]]:
        async def call(request: Any, context: Any) -> bytes:
            try:
                hub, _ = self.metadata(context)
                return await method(self._service, request, 0, hub)
            except (SchedulerError, PermissionError) as error:
                return await refuse(context, error)

        return call

    async def _get_work_items(self, request: pb.GetWorkItemsRequest, context: Any) -> None:
        try:
            hub, worker = self.metadata(context)
        except PermissionError as error:
            await refuse(context, error)
            return
        capacity = (
            request.maxConcurrentOrchestrationWorkItems or DEFAULT_CAPACITY,
            request.maxConcurrentActivityWorkItems or DEFAULT_CAPACITY,
            request.maxConcurrentEntityWorkItems or DEFAULT_CAPACITY,
        )
        stream = Stream(
            self._runtime.hub(hub), worker or request.worker_instance_id, capacity, filters_of(request)
        )
        _log.info("worker.connected", extra={"hub": hub, "worker": stream.worker, "capacity": capacity})
        self._runtime.dispatcher.attach(stream)
        try:
            # A worker takes the headers for "connected"; by themselves they wait for the first item or ping.
            await context.send_initial_metadata(())
            while not stream.closed:
                while stream.pending and not stream.closed:
                    work = stream.pending.popleft()
                    data = HEALTH_PING if work is None else self._runtime.handouts.encode(stream, work)
                    if data is not None:
                        await context.write(data)
                await stream.wait()
        finally:
            self._runtime.losses.detach(stream)
            _log.info("worker.disconnected", extra={"hub": hub, "worker": stream.worker})

    async def _stream_history(
        self, request: pb.StreamInstanceHistoryRequest, context: Any
    ) -> AsyncIterator[bytes]:
        try:
            hub, _ = self.metadata(context)
            chunks = await self._service.history(request, self._runtime.hub(hub))
        except (SchedulerError, PermissionError) as error:
            await refuse(context, error)
            return
        for chunk in chunks:
            yield chunk


def unary(call: Callable[[Any, Any], Awaitable[bytes]], parse: Callable[[bytes], Any]) -> Any:
    """Handler of a unary call that answers with encoded bytes."""
    return grpc.unary_unary_rpc_method_handler(call, parse, _identity)


async def refuse(context: Any, error: SchedulerError | PermissionError) -> bytes:
    """End a call with the status that belongs to an error."""
    if isinstance(error, SchedulerError):
        await context.abort(getattr(grpc.StatusCode, error.code), str(error))
    await context.abort(grpc.StatusCode.UNAUTHENTICATED, "a valid bearer token is required")
    return b""
