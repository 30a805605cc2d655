# pyright: reportPrivateUsage=false
"""gRPC calls for one asyncio loop, carried by gRPC's core directly.

``grpc.aio`` takes half as much CPU again for a short call: two tasks, a future for every step, a context made
for interceptors. Here a thread takes events off the core's completion queue, answers what needs no decision
itself, and hands the rest to the loop in batches: one wake-up for all that came together.

The names of ``grpc._cython.cygrpc`` that this builds on are those which the synchronous server of ``grpc`` is
made of. They are used in this module only.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, TypeAlias

import grpc
from grpc._cython import cygrpc

from towline.scheduler.server.corks import Corks

_log = logging.getLogger(__name__)

Metadata: TypeAlias = Sequence[tuple[str, "str | bytes"]]
Handler: TypeAlias = Callable[["Call", bytes], None]
"""Takes a call and its request, on the loop. It must not raise."""

_NAMES: Final = (
    "CompletionQueue",
    "CompletionType",
    "ReceiveCloseOnServerOperation",
    "ReceiveMessageOperation",
    "SendInitialMetadataOperation",
    "SendMessageOperation",
    "SendStatusFromServerOperation",
    "Server",
    "StatusCode",
    "WriteFlag",
)
if _missing := [name for name in _NAMES if not hasattr(cygrpc, name)]:
    raise ImportError(f"grpcio {grpc.__version__} has no {', '.join(_missing)} any more: install grpcio 1.85")

_OK: Final[int] = cygrpc.StatusCode.ok
_QUEUED_REQUESTS: Final = 32
"""Calls that the core may announce before the last one was looked at."""
_NO_FLAGS: Final = 0
_MORE_FOLLOWS: Final[int] = cygrpc.WriteFlag.buffer_hint
_STOP_S: Final = 2.0
"""Seconds that cancelled calls get to end."""
_DONE: Final = object()
"""Tag of an operation on which nothing depends."""
_NEW_CALL: Final = object()
_SHUT_DOWN: Final = object()


class Call:
    """One call under way. Used from the loop, but for the messages of a series."""

    __slots__ = ("_call", "_opened", "_watched", "ended", "lock", "metadata", "server")

    def __init__(self, server: CoreServer, call: Any, metadata: Metadata) -> None:
        self.server = server
        self._call = call
        self._opened = False
        self._watched = False
        self.metadata = metadata
        self.ended = False
        """It has its status, or the caller has gone away."""
        self.lock = threading.Lock()
        """Held to send a message or the status: two threads do."""

    def watch(self, gone: Callable[[], object]) -> None:
        """Call ``gone`` if the caller cancels, is out of time or disconnects before the call has ended."""
        self._watched = True

        def closed(_event: Any) -> None:
            if not self.ended:
                self.ended = True
                gone()

        self._call.start_server_batch((cygrpc.ReceiveCloseOnServerOperation(_NO_FLAGS),), _Close(closed))

    def open(self) -> None:
        """Send the headers of a stream: the caller takes them for "connected"."""
        self._opened = True
        self._call.start_server_batch((cygrpc.SendInitialMetadataOperation(None, _NO_FLAGS),), _DONE)

    def send(self, messages: Iterable[bytes], sent: Callable[[bool], None]) -> None:
        """Send messages of a stream; ``sent`` is told when more may follow (False: the call is over).

        One thread sends them all: a message that had to come back to the loop before the next could go
        would cost both threads a wake-up.
        """
        first = () if self._opened else (cygrpc.SendInitialMetadataOperation(None, _NO_FLAGS),)
        self._opened = True
        _Series(self, self._call, deque(messages), sent).begin(first)

    async def write(self, message: bytes) -> None:
        """Send one message of a stream.

        Raises:
            ConnectionError: The caller has gone away.
        """
        future: asyncio.Future[bool] = self.server.loop.create_future()
        self.send((message,), lambda success: None if future.done() else future.set_result(success))
        if not await future:
            raise ConnectionError("the caller has gone away")

    def reply(self, message: bytes) -> None:
        """Answer a unary call."""
        if self.ended:
            return
        self.ended = True
        operations = (
            cygrpc.SendInitialMetadataOperation(None, _NO_FLAGS),
            cygrpc.SendMessageOperation(message, _NO_FLAGS),
            cygrpc.SendStatusFromServerOperation(None, _OK, b"", _NO_FLAGS),
        )
        self.server.corks.before(self._call.peer)
        self._call.start_server_batch(self._with_close(operations), _DONE)

    def end(self, code: grpc.StatusCode = grpc.StatusCode.OK, details: str = "") -> None:
        """End the call with a status and no (further) message."""
        with self.lock:
            if self.ended:
                return
            self.ended = True
            status = cygrpc.SendStatusFromServerOperation(None, code.value[0], details.encode(), _NO_FLAGS)
            operations = (
                (status,) if self._opened else (cygrpc.SendInitialMetadataOperation(None, _NO_FLAGS), status)
            )
            self._call.start_server_batch(self._with_close(operations), _DONE)

    def _with_close(self, operations: tuple[Any, ...]) -> tuple[Any, ...]:
        # Every call must have it once, or the core takes the end of this object for a cancel.
        if self._watched:
            return operations
        return (*operations, cygrpc.ReceiveCloseOnServerOperation(_NO_FLAGS))


class _Series:
    """Messages of a stream on their way. The first is sent by the loop, the others by the polling thread."""

    __slots__ = ("_call", "_connection", "_core", "_messages", "_sent")

    def __init__(self, call: Call, core: Any, messages: deque[bytes], sent: Callable[[bool], None]) -> None:
        self._call = call
        self._core = core
        self._messages = messages
        self._sent = sent
        self._connection = call.server.corks.before(core.peer)

    def begin(self, first: tuple[Any, ...]) -> None:
        """Send the first, after the operations ``first``."""
        if self._connection is not None:
            self._connection.write()
        if not self._send_next(first):
            self._end(success=False)

    def written(self, event: Any) -> None:
        """One of them is written, or could not be. On the polling thread."""
        if not (event.success and self._messages and self._send_next()):
            self._end(success=event.success)

    def _end(self, *, success: bool) -> None:
        if self._connection is not None:
            self._connection.written()
        self._call.server.hand_over(self._sent, success)

    def _send_next(self, first: tuple[Any, ...] = ()) -> bool:
        message = self._messages.popleft()
        flags = _MORE_FOLLOWS if self._messages else _NO_FLAGS
        with self._call.lock:
            if self._call.ended:
                return False
            operation = cygrpc.SendMessageOperation(message, flags)
            self._core.start_server_batch((*first, operation), self)
        return True


class _Close:
    """Tag of a watched call's end: of interest only if the caller went away."""

    __slots__ = ("closed",)

    def __init__(self, closed: Callable[[Any], None]) -> None:
        self.closed = closed


class CoreServer:
    """Listens, and gives each call to the handler of its path."""

    def __init__(self, handlers: Mapping[str, Handler], options: Sequence[tuple[str, Any]]) -> None:
        self.loop = asyncio.get_running_loop()
        self.corks = Corks(self.loop)
        self._handlers = dict(handlers)
        self._queue = cygrpc.CompletionQueue()
        self._server = cygrpc.Server(tuple(options), False)
        self._server.register_completion_queue(self._queue)
        self._thread = threading.Thread(target=self._poll, name="scheduler-grpc", daemon=True)
        self._events: deque[tuple[Callable[[Any], None], Any]] = deque()
        self._woken = False
        self._started = False
        self._stopping = False
        self._empty = asyncio.Event()

    def bind(self, target: str, credentials: grpc.ServerCredentials | None = None) -> int:
        """Take an address.

        Returns:
            The port; 0 if the address can't be taken.
        """
        if credentials is None:
            return self._server.add_http2_port(target.encode())
        core: Any = credentials
        return self._server.add_http2_port(target.encode(), core._credentials)  # noqa: SLF001  # see above

    def start(self) -> None:
        """Take calls."""
        self._server.start()
        self._started = True
        for _ in range(_QUEUED_REQUESTS):
            self._server.request_call(self._queue, self._queue, _NEW_CALL)
        self._thread.start()

    async def stop(self, grace_s: float, end_calls: Callable[[], None]) -> None:
        """Refuse new calls, wait for those under way, then let ``end_calls`` end what is left of them."""
        if not self._started:
            return
        self._stopping = True
        self._server.shutdown(self._queue, _SHUT_DOWN)
        if not await self._emptied(grace_s):
            end_calls()
            if not await self._emptied(_STOP_S / 2):
                self._server.cancel_all_calls()
                await self._emptied(_STOP_S / 2)
        self._queue.shutdown()
        self.corks.close()
        await self.loop.run_in_executor(None, self._thread.join, _STOP_S)

    async def _emptied(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await self._empty.wait()
        except TimeoutError:
            return False
        return True

    # -- on the polling thread

    def _poll(self) -> None:
        poll = self._queue.poll
        ended = cygrpc.CompletionType.queue_shutdown
        while True:
            event = poll()
            if event.completion_type == ended:
                return
            try:
                self._sort(event)
            except Exception:  # noqa: BLE001  # the thread must outlive any call
                _log.exception("grpc.event_failed")
            del event  # a call that is over must not be kept until the next event

    def _sort(self, event: Any) -> None:
        tag = event.tag
        if tag is _DONE:
            return
        if tag is _NEW_CALL:
            if not self._stopping:
                self._server.request_call(self._queue, self._queue, _NEW_CALL)
            if event.success:
                self._receive(event)
        elif tag is _SHUT_DOWN:
            self.hand_over(self._shut_down, None)
        elif type(tag) is _Series:
            tag.written(event)
        elif type(tag) is _Close:
            if event.batch_operations[0].cancelled():
                self.hand_over(tag.closed, None)
        else:
            self.hand_over(tag, event)

    def _receive(self, event: Any) -> None:
        call = Call(self, event.call, event.invocation_metadata)
        handler = self._handlers.get(event.call_details.method.decode())
        if handler is None:
            call.end(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")
            return

        def received(event: Any) -> None:
            message = event.batch_operations[0].message()
            if message is None:
                call.end(grpc.StatusCode.CANCELLED)  # too large, or the caller is gone: the core has said so
            else:
                handler(call, message)

        event.call.start_server_batch((cygrpc.ReceiveMessageOperation(_NO_FLAGS),), received)

    def hand_over(self, take: Callable[[Any], None], event: Any) -> None:
        """Have the loop take an event."""
        self._events.append((take, event))
        if not self._woken:
            self._woken = True
            try:
                self.loop.call_soon_threadsafe(self._drain)
            except RuntimeError:
                _log.debug("grpc.loop_closed")

    # -- on the loop

    def _drain(self) -> None:
        self._woken = False  # first: what comes from now on wakes again
        events = self._events
        for _ in range(len(events)):
            take, event = events.popleft()
            try:
                take(event)
            except Exception:  # noqa: BLE001  # the other calls go on
                _log.exception("grpc.handler_failed")

    def _shut_down(self, _event: Any) -> None:
        self._empty.set()
