# pyright: reportUnknownMemberType=false
"""Binding of the services to calls: task hub and token from the metadata, errors to status codes."""

from __future__ import annotations

import asyncio
import hmac
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Container, Coroutine
from functools import partial
from typing import Any, Final

import grpc
from durabletask.internal import orchestrator_service_pb2 as pb

from towline.http2 import Admits, Handler, Headers, ServedCall
from towline.scheduler.engine.errors import NotDurableError, SchedulerError
from towline.scheduler.engine.model import Instance
from towline.scheduler.server.answers import UnusableAnswerError
from towline.scheduler.server.calls import Wait, WorkItems, end
from towline.scheduler.server.dispatch import DEFAULT_CAPACITY, Stream, filters_of
from towline.scheduler.server.methods import CHANGES, HUB_UNARY, NO_HUB, UNARY, WAITS, Change
from towline.scheduler.server.runtime import DEFAULT_HUB, Runtime
from towline.scheduler.server.service import EMPTY, Service

_log = logging.getLogger(__name__)

_REPEATS_REPORTS: Final = ("x-repeats-reports", "true")
"""Of workers that report what they have in hand until they are heard. The SDK's own report once."""
_KEEPS_ORCHESTRATIONS: Final = ("x-keeps-orchestrations", "true")
"""Of our workers, unless they replay each turn."""
_COMPLETION_TOKEN: Final = "x-completion-token"  # noqa: S105
"""Of our workers' calls for the history of a turn: the turn's token."""
SERVICE_NAME: Final = "TaskHubSidecarService"


def admits(token: str, open_to_all: Container[str]) -> Admits:
    """Lets calls with the token in, and those of some paths.

    Args:
        token: Asked for as ``authorization: Bearer ...``.
        open_to_all: Paths of calls that need none.
    """
    expected = f"Bearer {token}".encode()

    def admit(path: str, metadata: Headers) -> bool:
        sent = next((value for name, value in reversed(metadata) if name == "authorization"), "")
        return hmac.compare_digest(sent.encode(), expected) or path in open_to_all

    return admit


class Binding:
    """Makes call handlers of plain methods."""

    def __init__(self, runtime: Runtime, service: Service) -> None:
        self._runtime = runtime
        self._service = service
        self._tasks = Tasks(runtime.loop)
        self._waits: set[Wait] = set()

    @staticmethod
    def metadata(call: ServedCall) -> tuple[str, str]:
        """Task hub and worker id of a call."""
        hub, worker = DEFAULT_HUB, ""
        for key, value in call.metadata:
            if key == "taskhub":
                hub = value or DEFAULT_HUB
            elif key == "workerid":
                worker = value
        return hub, worker

    def handlers(self) -> dict[str, Handler]:
        """Handlers of ``TaskHubSidecarService`` by path."""
        methods: dict[str, Handler] = {"Hello": self._hello}
        for name, (change, request_type) in CHANGES.items():
            methods[name] = self._change(change, request_type.FromString, hub=name not in NO_HUB)
        for name, reached in WAITS.items():
            methods[name] = self._wait(reached)
        for name, (method, request_type) in UNARY.items():
            methods[name] = self.unary(self._with_hub(method), request_type.FromString)
        for name, (hub_method, request_type) in HUB_UNARY.items():
            methods[name] = self.unary(self._with_hub_name(hub_method), request_type.FromString)
        methods["StreamInstanceHistory"] = self.stream(
            self._stream_history, pb.StreamInstanceHistoryRequest.FromString
        )
        methods["GetWorkItems"] = self._get_work_items
        return {f"/{SERVICE_NAME}/{name}": handler for name, handler in methods.items()}

    def _hello(self, call: ServedCall, _data: bytes) -> None:
        """Answer, however busy the server is."""
        call.reply(EMPTY)

    def _change(self, change: Change, parse: Callable[[bytes], Any], *, hub: bool) -> Handler:
        """Handler of a call that is answered when its change is on disk. Needs no task."""
        service, runtime = self._service, self._runtime
        when_durable = runtime.journal.when_durable

        def handle(call: ServedCall, data: bytes) -> None:
            try:
                number = runtime.hub(self.metadata(call)[0]) if hub else 0
                reply = change(service, parse(data), number)
            except SchedulerError as refusal:
                # What it rests on may not be on disk yet: a run that "already exists" could still be undone.
                when_durable(partial(_end_refused, call, refusal))
                return
            except UnusableAnswerError:
                self._tasks.start(self._refuse_answer(call), call)
                return
            except Exception as error:  # noqa: BLE001  # all end the call with a status
                self._end(call, error)
                return

            def then(error: NotDurableError | None) -> None:
                if error is None:
                    call.reply(reply)
                else:
                    self._end(call, error)

            when_durable(then)

        return handle

    async def _refuse_answer(self, call: ServedCall) -> None:
        # There is nothing that a worker could do with an error, so it gets none.
        try:
            await self._runtime.answers.refused()
            call.reply(EMPTY)
        except Exception as error:  # noqa: BLE001
            self._end(call, error)

    def _wait(self, reached: Callable[[Instance], bool]) -> Handler:
        """Handler of a call that waits for an instance."""

        def handle(call: ServedCall, data: bytes) -> None:
            try:
                request = pb.GetInstanceRequest.FromString(data)
                hub = self._runtime.hub(self.metadata(call)[0])
            except Exception as error:  # noqa: BLE001
                self._end(call, error)
                return
            Wait(self._runtime, self._service, call, request, hub, reached, self._waits).look()

        return handle

    def unary(
        self, method: Callable[[Any, ServedCall], Awaitable[bytes]], parse: Callable[[bytes], Any]
    ) -> Handler:
        """Handler of any other unary call that answers with encoded bytes."""

        async def run(call: ServedCall, data: bytes) -> None:
            try:
                call.reply(await method(parse(data), call))
            except Exception as error:  # noqa: BLE001
                self._end(call, error)

        return self._in_a_task(run)

    def stream(
        self, method: Callable[[Any, ServedCall], AsyncIterator[bytes]], parse: Callable[[bytes], Any]
    ) -> Handler:
        """Handler of a call that answers with a stream of encoded messages."""

        async def run(call: ServedCall, data: bytes) -> None:
            try:
                async for message in method(parse(data), call):
                    await call.write(message)
                call.end()
            except Exception as error:  # noqa: BLE001
                self._end(call, error)

        return self._in_a_task(run)

    def _in_a_task(self, run: Callable[[ServedCall, bytes], Coroutine[Any, Any, None]]) -> Handler:
        tasks = self._tasks

        def handle(call: ServedCall, data: bytes) -> None:
            task = tasks.start(run(call, data), call)
            call.watch(task.cancel)

        return handle

    def _end(self, call: ServedCall, error: Exception) -> None:
        end(call, error, self._runtime.path)

    def stop(self) -> None:
        """End what is under way: its callers are told to come again."""
        self._tasks.stop()
        for wait in list(self._waits):
            wait.stop()

    def _with_hub(
        self, method: Callable[[Service, Any, int], Awaitable[bytes]]
    ) -> Callable[[Any, ServedCall], Awaitable[bytes]]:
        service, runtime = self._service, self._runtime

        def call_method(request: Any, call: ServedCall) -> Awaitable[bytes]:
            hub, _ = self.metadata(call)
            return method(service, request, runtime.hub(hub))

        return call_method

    def _with_hub_name(
        self, method: Callable[[Service, Any, int, str], Awaitable[bytes]]
    ) -> Callable[[Any, ServedCall], Awaitable[bytes]]:
        def call_method(request: Any, call: ServedCall) -> Awaitable[bytes]:
            hub, _ = self.metadata(call)
            return method(self._service, request, 0, hub)

        return call_method

    async def _stream_history(
        self, request: pb.StreamInstanceHistoryRequest, call: ServedCall
    ) -> AsyncIterator[bytes]:
        hub, _ = self.metadata(call)
        token = next((value for name, value in call.metadata if name == _COMPLETION_TOKEN), None)
        for chunk in await self._service.history(request, self._runtime.hub(hub), token):
            yield chunk

    def _get_work_items(self, call: ServedCall, data: bytes) -> None:
        try:
            request = pb.GetWorkItemsRequest.FromString(data)
            hub, worker = self.metadata(call)
            capacity = (
                request.maxConcurrentOrchestrationWorkItems or DEFAULT_CAPACITY,
                request.maxConcurrentActivityWorkItems or DEFAULT_CAPACITY,
                request.maxConcurrentEntityWorkItems or DEFAULT_CAPACITY,
            )
            stream = Stream(
                self._runtime.hub(hub),
                worker or request.worker_instance_id,
                capacity,
                filters_of(request),
                repeats_reports=_REPEATS_REPORTS in call.metadata,
                keeps_orchestrations=_KEEPS_ORCHESTRATIONS in call.metadata,
                fetches_history=pb.WORKER_CAPABILITY_HISTORY_STREAMING in request.capabilities,
            )
        except Exception as error:  # noqa: BLE001
            self._end(call, error)
            return
        facts = {"hub": hub, "worker": stream.worker, "capacity": capacity}
        _log.info("worker.connected", extra={**facts, "repeats_reports": stream.repeats_reports})
        WorkItems(self._runtime, call, stream).start()


def _end_refused(call: ServedCall, refusal: SchedulerError, failure: NotDurableError | None) -> None:
    end(call, failure or refusal)


class Tasks:
    """The tasks of calls under way."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._create = loop.create_task
        self._calls: dict[asyncio.Task[None], ServedCall] = {}

    def start(self, work: Any, call: ServedCall) -> asyncio.Task[None]:
        """Run the work of a call."""
        task = self._create(work)
        self._calls[task] = call
        task.add_done_callback(self._calls.pop)
        return task

    def stop(self) -> None:
        """Cut all short."""
        for task, call in list(self._calls.items()):
            task.cancel()
            call.end(grpc.StatusCode.UNAVAILABLE, "the server is stopping")
