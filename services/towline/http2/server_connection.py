"""The server's end of an HTTP/2 connection: takes calls, and carries their answers."""

from __future__ import annotations

import asyncio
import logging
import struct
from collections.abc import Mapping
from typing import Final

import grpc

from towline.http2.connection import Connection, Keepalive
from towline.http2.frames import PREFACE, Http2Error, Kind, Setting, frame
from towline.http2.headers import HEADER_LIST_BYTES, Headers
from towline.http2.requests import OPENED, SUCCEEDED, read_request, refused
from towline.http2.served import Admits, Handler, ServedCall

_log = logging.getLogger(__name__)

_NO_ERROR: Final = 0
_PROTOCOL_ERROR: Final = 1
_LAST_WORDS_S: Final = 1.0
"""Time that a peer gets to read why its connection ends."""
_NOT_HTTP2: Final = (
    b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain\r\nconnection: close\r\n\r\n"
    b"This port speaks gRPC, over HTTP/2 only.\n"
)


class ServerConnection(Connection[ServedCall]):
    """Takes calls. Used from its loop only.

    Args:
        handlers: By path, ``/service/method``.
        message_bytes_max: A request with a larger message is refused.
        keepalive: When a silent peer is gone.
        open_connections: It is in there as long as it stands.
        admits: Whom it does not admit ends as UNAUTHENTICATED; without it, all are.
    """

    def __init__(
        self,
        handlers: Mapping[str, Handler],
        message_bytes_max: int,
        keepalive: Keepalive,
        open_connections: set[ServerConnection],
        admits: Admits | None = None,
    ) -> None:
        super().__init__(keepalive)
        self._handlers_by_path = handlers
        self._message_bytes_max = message_bytes_max
        self._open_connections = open_connections
        self._admits = admits
        self._last = 0
        self._greeted = b""
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
        self.open(call)
        call.trailers = SUCCEEDED
        self.send(call, data)

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
        if self._transport is not None:  # a peer that does not read would keep it open
            self._loop.call_later(_LAST_WORDS_S, self._transport.abort)
        self._end(reason)

    def _lost(self, reason: str) -> None:
        self._open_connections.discard(self)
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
        self._open_connections.add(self)
        self._begin_to_watch()

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
            if self._greeted == PREFACE:
                # Not before: who does not speak HTTP/2 could not read what it is told.
                self._introduce((Setting.MAX_HEADER_LIST_SIZE, HEADER_LIST_BYTES))
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

    def _flush_soon(self) -> None:
        # A commit is followed by the answers to those who waited for it, and, a pass of the loop later, by
        # the work that it made. Written together they wake the other side once (decision 0014).
        self._loop.call_soon(self._loop.call_soon, self._flush)

    def flush(self) -> None:
        """Write what there is to write at once."""
        if self._out:
            self._flush()

    def _flush(self) -> None:
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
        handler = self._handlers_by_path.get(request.path, _not_found)
        call = ServedCall(self, request, handler, self._message_bytes_max)
        self._add(call, stream_id)
        call.asked = last
        if request.http_refusal:
            call.ended = True
            self.end(call, refused(request.http_refusal))
        elif request.refusal:
            call.end(grpc.StatusCode.UNIMPLEMENTED, request.refusal)
        elif handler is _not_found:
            _not_found(call, b"")
        elif self._admits is not None and not self._admits(request.path, request.metadata):
            # Now: what a caller sends who may not call takes no memory.
            call.end(grpc.StatusCode.UNAUTHENTICATED, "a valid bearer token is required")
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
