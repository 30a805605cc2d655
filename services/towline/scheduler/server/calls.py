"""What calls do while they are open: write a worker's stream, wait for an instance."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Final

import grpc
from durabletask.internal import orchestrator_service_pb2 as pb
from google.protobuf.message import DecodeError

from towline.http2 import ServedCall
from towline.scheduler.engine.errors import NotDurableError, SchedulerError
from towline.scheduler.engine.model import Instance
from towline.scheduler.engine.wire import HEALTH_PING
from towline.scheduler.server.dispatch import Stream
from towline.scheduler.server.runtime import Runtime
from towline.scheduler.server.service import Service
from towline.scheduler.store.database import unusable
from towline.scheduler.store.errors import DamagedError

_log = logging.getLogger(__name__)

_SERIES_BYTES: Final = 64 * 1024
"""Of work items that are encoded before the connection has taken those before them."""


class WorkItems:
    """Writes a worker's stream: work items in series, as the connection takes them."""

    def __init__(self, runtime: Runtime, call: ServedCall, stream: Stream) -> None:
        self._runtime = runtime
        self._call = call
        self._stream = stream
        self._writing = False
        self._scheduled = False
        self._over = False
        stream.notify = self._notify
        stream.write = self._write_now

    def start(self) -> None:
        """Let the worker know that it is connected, and give it what waits."""
        # The headers: by themselves they would wait for the first item or ping.
        self._call.open()
        self._call.watch(self._end)
        self._runtime.dispatcher.attach(self._stream)

    def _notify(self) -> None:
        # Later: whoever assigns work is in the midst of something else.
        if not self._scheduled and not self._writing:
            self._scheduled = True
            self._runtime.loop.call_soon(self._write_next)

    def _write_now(self) -> None:
        self._write_next()
        self._call.flush()

    def _write_next(self) -> None:
        self._scheduled = False
        stream = self._stream
        if self._over or self._writing:
            return
        messages: list[bytes] = []
        size = 0
        while stream.pending and not stream.closed and size < _SERIES_BYTES:
            work = stream.pending.popleft()
            data = HEALTH_PING if work is None else self._runtime.handouts.encode(stream, work)
            if data is not None:
                messages.append(data)
                size += len(data)
        if messages:
            self._writing = True
            self._call.send(messages, self._sent)
        elif stream.closed:
            self._end()

    def _sent(self, success: bool) -> None:
        self._writing = False
        if success:
            self._write_next()
        else:
            self._end()

    def _end(self) -> None:
        if self._over:
            return
        self._over = True
        self._call.end()
        self._runtime.losses.detach(self._stream)
        _log.info("worker.disconnected", extra={"hub": self._stream.hub, "worker": self._stream.worker})


class Wait:
    """A call that is answered when an instance has come so far, or is gone.

    The caller's deadline ends it; without one it waits as long as the caller does.
    """

    __slots__ = ("_all", "_call", "_hub", "_reached", "_request", "_row", "_runtime", "_service")

    def __init__(
        self,
        runtime: Runtime,
        service: Service,
        call: ServedCall,
        request: pb.GetInstanceRequest,
        hub: int,
        reached: Callable[[Instance], bool],
        all_waits: set[Wait],
    ) -> None:
        self._runtime = runtime
        self._service = service
        self._call = call
        self._request = request
        self._hub = hub
        self._reached = reached
        self._all = all_waits
        self._row: int | None = None

    def look(self) -> None:
        """Answer, or wait on."""
        call = self._call
        if call.ended:
            return
        try:
            settled, instance = self._service.settled(self._hub, self._request.instanceId)
            if not settled:
                self._runtime.journal.when_durable(self._settled)
                return
            if instance is None or self._reached(instance):
                reply = self._service.state_of(instance, self._request)
                self._all.discard(self)
                call.reply(reply)
                return
        except Exception as error:  # noqa: BLE001  # whatever it is ends the call
            self._all.discard(self)
            end(call, error, self._runtime.path)
            return
        if self._row is None:
            self._all.add(self)
            call.watch(self._gone)
        self._row = instance.row
        self._runtime.waiters.add(instance.row, self.look)

    def _settled(self, error: NotDurableError | None) -> None:
        if error is None:
            self.look()
        else:
            self._all.discard(self)
            end(self._call, error)

    def _gone(self) -> None:
        self._all.discard(self)
        if self._row is not None:
            self._runtime.waiters.discard(self._row, self.look)

    def stop(self) -> None:
        """End the call: its caller is told to come again."""
        self._gone()
        self._call.end(grpc.StatusCode.UNAVAILABLE, "the server is stopping")


def end(call: ServedCall, error: Exception, file: Path | None = None) -> None:
    """End a call with the status that belongs to an error, met in `file` if it is SQLite's."""
    damage = unusable(file, error) if isinstance(error, sqlite3.Error) and file is not None else error
    if isinstance(damage, DamagedError):
        _log.error("call.not_read", extra={"error": str(damage)})
        call.end(grpc.StatusCode.DATA_LOSS, str(damage))
        return
    if isinstance(error, SchedulerError):
        call.end(getattr(grpc.StatusCode, error.code), str(error))
    elif isinstance(error, DecodeError):
        call.end(grpc.StatusCode.INVALID_ARGUMENT, "the request cannot be decoded")
    elif not isinstance(error, ConnectionError):
        _log.error("call.failed", exc_info=error)
        call.end(grpc.StatusCode.UNKNOWN, f"unexpected {type(error).__name__}: {error}")
