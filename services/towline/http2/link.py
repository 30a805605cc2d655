"""One HTTP/2 connection: streams, flow control, what becomes of the calls on it."""

from __future__ import annotations

import asyncio
import struct
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, cast

import grpc
import grpc.aio

from towline.http2.exchange import Code, Exchange, NotTakenError, rpc_error
from towline.http2.frames import (
    ACK,
    END_HEADERS,
    END_STREAM,
    MAX_FRAME_BYTES,
    PREFACE,
    Frame,
    FrameReader,
    Http2Error,
    Kind,
    Setting,
    content,
    frame,
    number,
    read_headers,
    read_settings,
    settings,
)

_STREAM_WINDOW: Final = 1 << 24
_GIVEN_BACK_BYTES: Final = _STREAM_WINDOW // 4
"""From so many bytes on the peer is told that it may send as many again."""
_WINDOW_MAX: Final = (1 << 31) - 1
_FIRST_WINDOW: Final = 65_535
_LAST_STREAM: Final = (1 << 31) - 1
_CANCEL: Final = 8
_REFUSED: Final = 7
_REFUSED_FOR_S: Final = 0.01
"""Until a call that was refused is made again."""
_RESET_CODES: Final[Mapping[int, grpc.StatusCode]] = {
    7: Code.UNAVAILABLE,
    8: Code.CANCELLED,
    11: Code.RESOURCE_EXHAUSTED,
    12: Code.PERMISSION_DENIED,
}
"""From HTTP/2's error codes, as gRPC's own clients do (doc/PROTOCOL-HTTP2.md); any other is INTERNAL."""


@dataclass(frozen=True, slots=True)
class Keepalive:
    """When a peer that says nothing, although something is expected of it, is taken for gone. In seconds."""

    after_s: float = 20.0
    """It is asked."""
    patience_s: float = 10.0
    """Longest until it says something then."""


class Link(asyncio.Protocol):
    """Used from its loop only."""

    def __init__(self, keepalive: Keepalive | None = None) -> None:
        self._keepalive = keepalive or Keepalive()
        self._watching: asyncio.TimerHandle | None = None
        self._asked_at = 0.0
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._reader = FrameReader()
        self._out: list[bytes] = []
        self._calls: dict[int, Exchange] = {}
        self._waiting: deque[Exchange] = deque()
        self._unsent: dict[int, Exchange] = {}
        self._next = 1
        self._window = _FIRST_WINDOW
        self._stream_window = _FIRST_WINDOW
        self._frame_bytes = MAX_FRAME_BYTES
        self._streams_max = 100
        self._settings_came = False
        self._read_bytes = 0
        self._open_headers: Frame | None = None
        self._gone = False
        self.last_heard = 0.0
        """Loop's time of the last thing that came."""
        self._handlers: dict[int, Callable[[Frame], None]] = {
            Kind.DATA: self._data,
            Kind.HEADERS: self._headers,
            Kind.CONTINUATION: self._headers,
            Kind.RST_STREAM: self._reset,
            Kind.SETTINGS: self._settings,
            Kind.PUSH_PROMISE: self._refuse,
            Kind.PING: self._ping,
            Kind.GOAWAY: self._go_away,
            Kind.WINDOW_UPDATE: self._window_update,
        }

    @property
    def takes_calls(self) -> bool:
        """Whether new calls may be made on it."""
        return not self._gone and self._next < _LAST_STREAM

    def start(self, call: Exchange) -> None:
        """Make a call, as soon as the peer takes another one."""
        if self._gone:
            call.fail(NotTakenError("the connection is closed"))
        elif len(self._calls) >= self._streams_max:
            self._waiting.append(call)
        else:
            self._begin(call)

    def abandon(self, call: Exchange) -> None:
        """Nobody waits for it any more."""
        if self._calls.get(call.stream) is call:
            self._put(frame(Kind.RST_STREAM, 0, call.stream, struct.pack(">I", _CANCEL)))
            self._forget(call)
        else:
            self._waiting = deque(other for other in self._waiting if other is not call)

    def give_back(self, call: Exchange) -> None:
        """Let the peer go on, if enough of what it has sent is spent."""
        spent = call.spent
        if spent >= _GIVEN_BACK_BYTES and self._calls.get(call.stream) is call:
            call.held -= spent
            self._put(frame(Kind.WINDOW_UPDATE, 0, call.stream, struct.pack(">I", spent)))

    def lose(self, reason: str) -> None:
        """Give the connection up; its calls fail."""
        if self._transport is not None:
            self._transport.abort()
        self._end(reason)

    # asyncio's side.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It stands."""
        # uvloop's transports have no such class among theirs.
        self._transport = made = cast("asyncio.Transport", transport)
        self.last_heard = self._loop.time()
        told = settings(
            (
                (Setting.HEADER_TABLE_SIZE, 0),
                (Setting.ENABLE_PUSH, 0),
                (Setting.INITIAL_WINDOW_SIZE, _STREAM_WINDOW),
            )
        )
        more = struct.pack(">I", _WINDOW_MAX - _FIRST_WINDOW)
        made.write(PREFACE + told + frame(Kind.WINDOW_UPDATE, 0, 0, more))

    def data_received(self, data: bytes) -> None:
        """Something came."""
        self.last_heard = self._loop.time()
        try:
            for received in self._reader.feed(data):
                self._take(received)
        except Http2Error as error:
            self.lose(f"the peer sent {error}")

    def connection_lost(self, exc: Exception | None) -> None:
        """It is closed."""
        self._end(f"the connection is closed ({exc!r})" if exc else "the connection is closed")

    def _take(self, received: Frame) -> None:
        if self._open_headers is not None and received.kind != Kind.CONTINUATION:
            raise Http2Error("headers that break off")
        handle = self._handlers.get(received.kind)
        if handle is not None:  # frames of kinds that nobody knows are to be passed over
            handle(received)

    # Sending.

    def _begin(self, call: Exchange) -> None:
        call.stream, self._next = self._next, self._next + 2
        call.window = self._stream_window
        self._calls[call.stream] = call
        first, rest = call.block[: self._frame_bytes], call.block[self._frame_bytes :]
        self._put(frame(Kind.HEADERS, 0 if rest else END_HEADERS, call.stream, first))
        while rest:
            part, rest = rest[: self._frame_bytes], rest[self._frame_bytes :]
            self._put(frame(Kind.CONTINUATION, 0 if rest else END_HEADERS, call.stream, part))
        self._unsent[call.stream] = call
        self._send(call)
        if self._watching is None:
            self._watching = self._loop.call_later(self._keepalive.after_s, self._watch)

    def _send(self, call: Exchange) -> None:
        """As much of the call's message as the peer takes."""
        while True:
            size = min(len(call.unsent), self._frame_bytes, self._window, call.window)
            if size <= 0:
                return
            part, call.unsent = call.unsent[:size], call.unsent[size:]
            self._window -= size
            call.window -= size
            last = not call.unsent
            self._put(frame(Kind.DATA, END_STREAM if last else 0, call.stream, part))
            if last:
                del self._unsent[call.stream]
                return

    def _send_more(self) -> None:
        for call in list(self._unsent.values()):
            if self._window <= 0:
                return
            self._send(call)

    def _put(self, data: bytes) -> None:
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out.append(data)

    def _flush(self) -> None:
        out, self._out = self._out, []
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(b"".join(out))

    # Receiving.

    def _data(self, received: Frame) -> None:
        self._read_bytes += len(received.payload)
        if self._read_bytes > _WINDOW_MAX // 2:
            self._put(frame(Kind.WINDOW_UPDATE, 0, 0, struct.pack(">I", self._read_bytes)))
            self._read_bytes = 0
        call = self._calls.get(received.stream)
        if call is None:
            return
        call.held += len(received.payload)
        try:
            call.take(content(received))
        except grpc.aio.AioRpcError as error:
            self.abandon(call)
            call.fail(error)
            return
        if received.flags & END_STREAM:
            self._finish(call)
        else:
            self.give_back(call)

    def _headers(self, received: Frame) -> None:
        begun = self._open_headers
        if received.kind == Kind.CONTINUATION:
            if begun is None or begun.stream != received.stream:
                raise Http2Error("a continuation of nothing")
            block = begun.payload + received.payload
            received = Frame(begun.kind, begun.flags | received.flags & END_HEADERS, begun.stream, block)
        else:
            received = received._replace(payload=content(received))
        if len(received.payload) > 4 * MAX_FRAME_BYTES:
            raise Http2Error("too large a header block")
        if not received.flags & END_HEADERS:
            self._open_headers = received
            return
        self._open_headers = None
        headers = read_headers(received.payload)
        call = self._calls.get(received.stream)
        if call is not None:
            last = bool(received.flags & END_STREAM)
            call.told(headers, last=last)
            if last:
                self._finish(call)

    def _finish(self, call: Exchange) -> None:
        if call.stream in self._unsent:
            # It has been answered before all of it was sent: the rest is not wanted.
            self._put(frame(Kind.RST_STREAM, 0, call.stream, struct.pack(">I", _CANCEL)))
        self._forget(call)
        call.end()

    def _forget(self, call: Exchange) -> None:
        self._calls.pop(call.stream, None)
        self._unsent.pop(call.stream, None)
        self._begin_waiting()
        if self._gone and not self._calls and self._transport is not None:
            self._transport.close()

    def _begin_waiting(self) -> None:
        while self._waiting and len(self._calls) < self._streams_max and not self._gone:
            self._begin(self._waiting.popleft())

    def _reset(self, received: Frame) -> None:
        code = number(received.payload)
        call = self._calls.get(received.stream)
        if call is None:
            return
        if code == _REFUSED and self.takes_calls:
            # Not looked at (RFC 9113, 8.7). The peer may count a call that has just ended as open.
            self._calls.pop(call.stream)
            self._unsent.pop(call.stream, None)
            call.rewind()
            self._waiting.append(call)
            self._loop.call_later(_REFUSED_FOR_S, self._begin_waiting)
        else:
            self._forget(call)
            call.fail(rpc_error(_RESET_CODES.get(code, Code.INTERNAL), f"the peer reset the call ({code})"))

    def _settings(self, received: Frame) -> None:
        if received.flags & ACK:
            return
        if not self._settings_came:
            # Without a word of it there is no limit.
            self._settings_came, self._streams_max = True, _LAST_STREAM
        for name, value in read_settings(received.payload):
            if name == Setting.MAX_CONCURRENT_STREAMS:
                self._streams_max = value
            elif name == Setting.MAX_FRAME_SIZE:
                self._frame_bytes = min(max(value, MAX_FRAME_BYTES), 1 << 20)
            elif name == Setting.INITIAL_WINDOW_SIZE:
                change, self._stream_window = value - self._stream_window, value
                for call in self._calls.values():
                    call.window += change
        self._put(frame(Kind.SETTINGS, ACK, 0))
        self._begin_waiting()
        self._send_more()

    def _window_update(self, received: Frame) -> None:
        more = number(received.payload)
        if received.stream == 0:
            self._window += more
            self._send_more()
        elif (call := self._unsent.get(received.stream)) is not None:
            call.window += more
            self._send(call)

    def _ping(self, received: Frame) -> None:
        if not received.flags & ACK:
            self._put(frame(Kind.PING, ACK, 0, received.payload))

    def _go_away(self, received: Frame) -> None:
        last = number(received.payload)
        self._gone = True
        for call in [call for stream, call in self._calls.items() if stream > last]:
            self._forget(call)
            call.fail(NotTakenError("the peer is going away"))
        self._leave_waiting("the peer is going away")
        if not self._calls and self._transport is not None:
            self._transport.close()

    def _watch(self) -> None:
        """Ask after a peer that says nothing; one that does not answer is gone."""
        self._watching = None
        if not self._calls:
            return
        now, heard, asked, keepalive = self._loop.time(), self.last_heard, self._asked_at, self._keepalive
        if asked > heard:
            due = asked + keepalive.patience_s
            if now >= due:
                self.lose("the peer is silent")
                return
        elif now >= heard + keepalive.after_s:
            self._asked_at = now
            self._put(frame(Kind.PING, 0, 0, bytes(8)))
            due = now + keepalive.patience_s
        else:
            due = heard + keepalive.after_s
        self._watching = self._loop.call_at(due, self._watch)

    def _refuse(self, received: Frame) -> None:
        raise Http2Error(f"a frame of type {received.kind}, which was not asked for")

    def _end(self, reason: str) -> None:
        self._gone = True
        if self._watching is not None:
            self._watching.cancel()
        calls = list(self._calls.values())
        self._calls.clear()
        self._unsent.clear()
        for call in calls:
            call.fail(rpc_error(Code.UNAVAILABLE, reason))
        self._leave_waiting(reason)

    def _leave_waiting(self, reason: str) -> None:
        while self._waiting:
            self._waiting.popleft().fail(NotTakenError(reason))
