"""The client's end of an HTTP/2 connection: what becomes of the calls on it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping
from typing import Final

import grpc
import grpc.aio

from towline.http2.connection import Connection, Keepalive
from towline.http2.exchange import Code, Exchange, NotTakenError, rpc_error
from towline.http2.frames import ACK, PREFACE, Frame, Setting, number
from towline.http2.headers import Headers

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


class Link(Connection[Exchange]):
    """Used from its loop only."""

    def __init__(self, keepalive: Keepalive | None = None) -> None:
        super().__init__(keepalive or Keepalive())
        self._waiting: deque[Exchange] = deque()
        self._next = 1
        self._streams_max = 100
        self._settings_came = False

    @property
    def takes_calls(self) -> bool:
        """Whether new calls may be made on it."""
        return not self._gone and self._next < _LAST_STREAM

    @property
    def is_open(self) -> bool:
        """Whether calls may be under way on it."""
        return self._transport is not None and not self._transport.is_closing()

    def start(self, call: Exchange) -> None:
        """Make a call, as soon as the peer takes another one."""
        if self._gone:
            call.fail(NotTakenError("the connection is closed"))
        elif len(self._streams) >= self._streams_max:
            self._waiting.append(call)
        else:
            self._begin(call)

    def abandon(self, call: Exchange) -> None:
        """Nobody waits for it any more."""
        if self._streams.get(call.stream) is call:
            self._put_reset(call.stream, _CANCEL)
            self._forget(call)
        else:
            self._waiting = deque(other for other in self._waiting if other is not call)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It stands."""
        super().connection_made(transport)
        self._put(PREFACE)
        self._introduce((Setting.ENABLE_PUSH, 0))

    def _begin(self, call: Exchange) -> None:
        self._add(call, self._next)
        self._next += 2
        self._put_headers(call.stream, call.block, last=False)
        self._send(call)
        self._begin_to_watch()

    @property
    def _expects(self) -> bool:
        return bool(self._streams)

    def _came(self, stream: Exchange, data: bytes, *, last: bool) -> None:
        try:
            stream.take(data)
        except grpc.aio.AioRpcError as error:
            self.abandon(stream)
            stream.fail(error)
            return
        if last:
            self._finish(stream)
        else:
            self.give_back(stream)

    def _told(self, stream_id: int, headers: Headers, *, last: bool) -> None:
        call = self._streams.get(stream_id)
        if call is not None:
            call.told(headers, last=last)
            if last:
                self._finish(call)

    def _finish(self, call: Exchange) -> None:
        if call.stream in self._unsent:
            # It has been answered before all of it was sent: the rest is not wanted.
            self._put_reset(call.stream, _CANCEL)
        self._forget(call)
        call.end()

    def _forget(self, call: Exchange) -> None:
        self._drop(call)
        self._begin_waiting()
        if self._gone and not self._streams and self._transport is not None:
            self._transport.close()

    def _begin_waiting(self) -> None:
        while self._waiting and len(self._streams) < self._streams_max and not self._gone:
            self._begin(self._waiting.popleft())

    def _was_reset(self, stream: Exchange, code: int) -> None:
        if code == _REFUSED and self.takes_calls:
            # Not looked at (RFC 9113, 8.7). The peer may count a call that has just ended as open.
            self._drop(stream)
            stream.rewind()
            self._waiting.append(stream)
            self._loop.call_later(_REFUSED_FOR_S, self._begin_waiting)
        else:
            self._forget(stream)
            stream.fail(rpc_error(_RESET_CODES.get(code, Code.INTERNAL), f"the peer reset the call ({code})"))

    def _settings(self, received: Frame) -> None:
        if not self._settings_came and not received.flags & ACK:
            # Without a word of it there is no limit.
            self._settings_came, self._streams_max = True, _LAST_STREAM
        super()._settings(received)
        self._begin_waiting()

    def _set(self, name: int, value: int) -> None:
        if name == Setting.MAX_CONCURRENT_STREAMS:
            self._streams_max = value

    def _go_away(self, received: Frame) -> None:
        last = number(received.payload)
        self._gone = True
        for call in [call for stream, call in self._streams.items() if stream > last]:
            self._forget(call)
            call.fail(NotTakenError("the peer is going away"))
        self._leave_waiting("the peer is going away")
        if not self._streams and self._transport is not None:
            self._transport.close()

    def _lost(self, reason: str) -> None:
        calls = list(self._streams.values())
        self._streams.clear()
        for call in calls:
            call.fail(rpc_error(Code.UNAVAILABLE, reason))
        self._leave_waiting(reason)

    def _leave_waiting(self, reason: str) -> None:
        while self._waiting:
            self._waiting.popleft().fail(NotTakenError(reason))
