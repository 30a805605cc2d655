"""The server's end: connections that are called over, and who listens for them."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import ssl
import struct
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

import grpc

from towline.http2.connection import Connection, Keepalive
from towline.http2.frames import (
    END_HEADERS,
    END_STREAM,
    PREFACE,
    Http2Error,
    Kind,
    Setting,
    frame,
)
from towline.http2.headers import HEADER_LIST_BYTES, Headers
from towline.http2.requests import OPENED, SUCCEEDED, read_request, refused
from towline.http2.served import Handler, ServedCall

_log = logging.getLogger(__name__)

_NO_ERROR: Final = 0
_PROTOCOL_ERROR: Final = 1
_STOP_S: Final = 1.0
"""Seconds that ended calls and connections get to be told of it."""
_BACKLOG: Final = 1_024
_NOT_HERE: Final = frozenset({errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT})
_NOT_HTTP2: Final = (
    b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain\r\nconnection: close\r\n\r\n"
    b"This port speaks gRPC, over HTTP/2 only.\n"
)


class ServerConnection(Connection[ServedCall]):
    """Takes calls. Used from its loop only.

    Args:
        server: Whose it is.
    """

    def __init__(self, server: Server) -> None:
        super().__init__(server.keepalive)
        self._server = server
        self._last = 0
        self._greeted = b""
        self._flushing = False
        self._full = False
        self._written: list[ServedCall] = []
        self.loop = self._loop

    # For calls.

    def open(self, call: ServedCall) -> None:
        """Send the headers of an answer, unless that is done."""
        if not call.opened:
            call.opened = True
            self._put_headers(call.stream, OPENED, last=False)

    def send(self, call: ServedCall, data: bytes) -> None:
        """Send messages of a stream."""
        call.unsent = memoryview(data)
        self._send(call)

    def answer(self, call: ServedCall, data: bytes) -> None:
        """Send an answer with one message, and that the call went well."""
        size = len(data)
        if call.opened or size > self._frame_bytes or size > self._window or size > call.window:
            self.open(call)
            call.trailers = SUCCEEDED
            self.send(call, data)
            return
        self._window -= size
        stream = call.stream
        self._put(
            frame(Kind.HEADERS, END_HEADERS, stream, OPENED)
            + frame(Kind.DATA, 0, stream, data)
            + frame(Kind.HEADERS, END_HEADERS | END_STREAM, stream, SUCCEEDED)
        )
        self._leave(call)

    def end(self, call: ServedCall, trailers: bytes) -> None:
        """Send how a call ended, after what is still to be sent of it."""
        if call.stream in self._unsent:
            call.trailers = trailers
        else:
            self._put_headers(call.stream, trailers, last=True)
            self._leave(call)

    def _leave(self, call: ServedCall) -> None:
        if not call.asked:
            # The rest of the request is not wanted (RFC 9113, 8.1).
            self._put_reset(call.stream, _NO_ERROR)
        self._drop(call)

    def _has_sent(self, stream: ServedCall) -> None:
        if stream.trailers is not None:
            self._put_headers(stream.stream, stream.trailers, last=True)
            self._leave(stream)
        else:
            self._written.append(stream)

    # Its end.

    @property
    def calls(self) -> int:
        """Number of calls under way."""
        return len(self._streams)

    def go_away(self) -> None:
        """Take no further calls."""
        self._gone = True
        self._put(frame(Kind.GOAWAY, 0, 0, struct.pack(">II", self._last, _NO_ERROR)))

    def close(self) -> None:
        """Close it when what has been said is sent."""
        self._flush()
        if self._transport is not None:
            self._transport.close()

    def _fail(self, reason: str) -> None:
        _log.info("http2.connection_failed", extra={"reason": reason})
        head = struct.pack(">II", self._last, _PROTOCOL_ERROR)
        self._put(frame(Kind.GOAWAY, 0, 0, head + reason.encode()[:200]))
        self.close()
        self._end(reason)

    def _lost(self, reason: str) -> None:
        self._server.forget(self)
        calls = list(self._streams.values())
        self._streams.clear()
        self._written.clear()
        for call in calls:
            call.caller_gone()
        del reason

    @property
    def _expects(self) -> bool:
        return True

    # asyncio's side.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It stands."""
        super().connection_made(transport)
        self._server.add(self)
        self._ask_again()

    def _own_settings(self) -> tuple[tuple[Setting, int], ...]:
        return (*super()._own_settings(), (Setting.MAX_HEADER_LIST_SIZE, HEADER_LIST_BYTES))

    def data_received(self, data: bytes) -> None:
        """Something came."""
        if self._greeted != PREFACE:
            data = self._greet(data)
        if data:
            super().data_received(data)

    def _greet(self, data: bytes) -> bytes:
        missing = len(PREFACE) - len(self._greeted)
        self._greeted += data[:missing]
        if PREFACE.startswith(self._greeted):
            return data[missing:]
        if self._transport is not None and not self._transport.is_closing():
            _log.info("http2.no_http2", extra={"began_with": repr(self._greeted)})
            self._transport.write(_NOT_HTTP2)
            self._transport.close()
        return b""

    def pause_writing(self) -> None:
        """The peer does not take what it is sent: nothing more is taken from it."""
        self._full = True
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        """It does again."""
        self._full = False
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()
        self._tell_written()

    def _put(self, data: bytes) -> None:
        # A commit is followed by the answers to those who waited for it, and, a pass of the loop later, by
        # the work that it made. Written together they wake the other side once (decision 0014).
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._loop.call_soon, self._flush)
        self._out.append(data)

    def _flush(self) -> None:
        self._flushing = False
        super()._flush()
        if not self._full:
            self._tell_written()

    def _tell_written(self) -> None:
        written, self._written = self._written, []
        for call in written:
            call.has_sent(success=True)

    # What comes.

    def _told(self, stream_id: int, headers: Headers, *, last: bool) -> None:
        if stream_id <= self._last:
            call = self._streams.get(stream_id)
            if call is not None and last:  # trailers
                self._came(call, b"", last=True)
            return
        if not stream_id & 1:
            raise Http2Error("a call with an even number")
        if self._gone:
            return
        self._last = stream_id
        request = read_request(headers)
        handler = self._server.handlers.get(request.path, _not_found)
        call = ServedCall(self, request, handler, self._server.message_bytes_max)
        self._add(call, stream_id)
        call.asked = last
        if request.http_refusal:
            call.ended = True
            self.end(call, refused(request.http_refusal))
        elif request.refusal:
            call.end(grpc.StatusCode.UNIMPLEMENTED, request.refusal)
        elif handler is _not_found:
            _not_found(call, b"")
        elif last:
            call.end(grpc.StatusCode.INTERNAL, "a call needs one message, whole")

    def _came(self, stream: ServedCall, data: bytes, *, last: bool) -> None:
        if not last:
            stream.take(data, last=False)
            self.give_back(stream)
            return
        try:
            stream.take(data, last=True)
        except Exception:  # noqa: BLE001  # the other calls go on
            _log.exception("http2.handler_failed")
            stream.end(grpc.StatusCode.UNKNOWN, "the server failed")

    def _was_reset(self, stream: ServedCall, code: int) -> None:
        del code
        self._drop(stream)
        stream.caller_gone()


def _not_found(call: ServedCall, _message: bytes) -> None:
    call.end(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")


class Server:
    """Listens, and gives each call to the handler of its path. Belongs to the loop that it is made on.

    Args:
        handlers: By path, ``/service/method``.
        message_bytes_max: A request with a larger message is refused.
        keepalive: When a silent peer is gone.
    """

    def __init__(
        self, handlers: Mapping[str, Handler], *, message_bytes_max: int, keepalive: Keepalive
    ) -> None:
        self.handlers = dict(handlers)
        self.message_bytes_max = message_bytes_max
        self.keepalive = keepalive
        self._listeners: list[asyncio.Server] = []
        self._connections: set[ServerConnection] = set()

    async def listen(self, host: str, port: int, tls: ssl.SSLContext | None = None) -> int:
        """Take calls at an address; ``::`` is every address of both families.

        Args:
            host: Name or address.
            port: TCP port; 0 takes a free one.
            tls: Makes it TLS. Must agree on ``h2`` only.

        Returns:
            The port.

        Raises:
            OSError: The address can't be taken.
        """
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, _, _, _, address in dict.fromkeys(found):
            try:
                listening = socket.create_server(
                    (address[0], port),
                    family=family,
                    backlog=_BACKLOG,
                    dualstack_ipv6=host == "::" and socket.has_dualstack_ipv6(),
                )
            except OSError as error:
                if error.errno in _NOT_HERE and self._listeners:
                    continue  # a name for an address of a family that this machine has not got
                raise
            port = listening.getsockname()[1]
            make = partial(ServerConnection, self)
            self._listeners.append(await loop.create_server(make, sock=listening, ssl=tls, backlog=_BACKLOG))
        return port

    async def stop(self, grace_s: float, end_calls: Callable[[], None]) -> None:
        """Refuse new calls, wait for those under way, then let ``end_calls`` end what is left of them."""
        for listener in self._listeners:
            listener.close()
        for connection in self._connections:
            connection.go_away()
        if not await self._wait_until(self._idle, grace_s):
            end_calls()
            await self._wait_until(self._idle, _STOP_S)
        for connection in list(self._connections):
            connection.close()
        await self._wait_until(lambda: not self._connections, _STOP_S)
        for connection in list(self._connections):
            connection.lose("the server has stopped")

    def _idle(self) -> bool:
        return not any(connection.calls for connection in self._connections)

    @staticmethod
    async def _wait_until(reached: Callable[[], bool], seconds: float) -> bool:
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        while not reached():
            if loop.time() >= until:
                return False
            await asyncio.sleep(0.01)
        return True

    # For connections.

    def add(self, connection: ServerConnection) -> None:
        """One more."""
        self._connections.add(connection)

    def forget(self, connection: ServerConnection) -> None:
        """One less."""
        self._connections.discard(connection)
