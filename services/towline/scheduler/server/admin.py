"""Two small services beside the protocol: ``towline.scheduler.Admin`` and ``grpc.health.v1.Health``.

``Admin`` speaks well-known types only, so that a caller needs no generated code:

=========  ==========================  ==================================
method     request                     response
=========  ==========================  ==================================
SkipTime   google.protobuf.Duration    google.protobuf.Timestamp (the new time); with ``--test-clock`` only
GetTime    google.protobuf.Empty       google.protobuf.Timestamp
GetStats   google.protobuf.Empty       google.protobuf.Struct
Backup     google.protobuf.StringValue google.protobuf.Int64Value (bytes); the value is a path on the server
=========  ==========================  ==================================
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

from google.protobuf.duration_pb2 import Duration
from google.protobuf.empty_pb2 import Empty
from google.protobuf.struct_pb2 import Struct
from google.protobuf.wrappers_pb2 import Int64Value, StringValue

from towline.http2 import Handler, ServedCall
from towline.scheduler.engine.errors import InvalidRequestError, PreconditionError
from towline.scheduler.engine.wire import timestamp
from towline.scheduler.server.readers import Readers
from towline.scheduler.server.rpc import Binding
from towline.scheduler.server.runtime import Runtime
from towline.scheduler.server.stats import collect
from towline.scheduler.store.database import backup
from towline.scheduler.store.errors import StoreError

ADMIN_SERVICE: Final = "towline.scheduler.Admin"
HEALTH_SERVICE: Final = "grpc.health.v1.Health"
_SERVING: Final = b"\x08\x01"
_NOT_SERVING: Final = b"\x08\x02"


class Admin:
    """Operations of whoever runs the server. Asks for the same token as everything else."""

    def __init__(self, runtime: Runtime, readers: Readers, binding: Binding) -> None:
        self._runtime = runtime
        self._readers = readers
        self._binding = binding

    def handlers(self) -> dict[str, Handler]:
        """Handlers of the service by path."""
        unary = self._binding.unary
        methods = {
            "GetTime": unary(self._get_time, Empty.FromString),
            "GetStats": unary(self._get_stats, Empty.FromString),
            "Backup": unary(self._backup, StringValue.FromString),
        }
        if self._runtime.test_clock:
            methods["SkipTime"] = unary(self._skip_time, Duration.FromString)
        return {f"/{ADMIN_SERVICE}/{name}": handler for name, handler in methods.items()}

    async def _skip_time(self, request: Duration, _call: ServedCall) -> bytes:
        runtime = self._runtime
        us = request.ToMicroseconds()
        if us < 0:
            raise InvalidRequestError("time can only be skipped forward")
        runtime.clock.skip(us)
        runtime.journal.changes.rows.append(("set_meta", ("clock_offset_us", str(runtime.clock.offset_us))))
        runtime.timers.arm()
        await runtime.journal.commit()
        return timestamp(runtime.clock.now()).SerializeToString()

    async def _get_time(self, _request: Empty, _call: ServedCall) -> bytes:
        return timestamp(self._runtime.clock.now()).SerializeToString()

    async def _get_stats(self, _request: Empty, _call: ServedCall) -> bytes:
        struct = Struct()
        struct.update(await collect(self._runtime, self._readers))
        return struct.SerializeToString()

    async def _backup(self, request: StringValue, _call: ServedCall) -> bytes:
        path = Path(request.value)
        if not path.is_absolute():
            raise InvalidRequestError("the destination of a backup must be an absolute path")
        try:
            size = await asyncio.to_thread(backup, self._runtime.path, path)
        except StoreError as error:
            raise PreconditionError(str(error)) from error
        return Int64Value(value=size).SerializeToString()


class Health:
    """The standard health protocol; its two messages are small enough to write by hand. Asks for no token."""

    def __init__(self, binding: Binding) -> None:
        self._binding = binding
        self._serving = True
        self._changed = asyncio.Event()

    def stop(self) -> None:
        """Say that the server is going away."""
        self._serving = False
        self._changed.set()

    def handlers(self) -> dict[str, Handler]:
        """Handlers of the service by path."""
        return {
            f"/{HEALTH_SERVICE}/Check": self._binding.unary(self._check, bytes),
            f"/{HEALTH_SERVICE}/Watch": self._binding.stream(self._watch, bytes),
        }

    def _status(self) -> bytes:
        return _SERVING if self._serving else _NOT_SERVING

    async def _check(self, _request: bytes, _call: ServedCall) -> bytes:
        return self._status()

    async def _watch(self, _request: bytes, _call: ServedCall) -> AsyncIterator[bytes]:
        yield self._status()
        if self._serving:
            await self._changed.wait()
            yield self._status()
