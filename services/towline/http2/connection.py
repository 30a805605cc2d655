"""What both ends of an HTTP/2 connection do: frames, flow control, settings, pings (RFC 9113)."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Final, Generic, TypeVar, cast

from towline.http2.frames import (
    ACK,
    END_HEADERS,
    END_STREAM,
    MAX_FRAME_BYTES,
    Frame,
    FrameReader,
    Http2Error,
    Kind,
    Setting,
    content,
    frame,
    number,
    read_settings,
    settings,
)
from towline.http2.headers import NO_TABLE, TABLE_BYTES, HeaderReader, Headers

_STREAM_WINDOW: Final = 1 << 24
_GIVEN_BACK_BYTES: Final = _STREAM_WINDOW // 4
"""From so many bytes on the peer is told that it may send as many again."""
_WINDOW_MAX: Final = (1 << 31) - 1
_FIRST_WINDOW: Final = 65_535
_SETTINGS: Final = ((Setting.HEADER_TABLE_SIZE, 0), (Setting.INITIAL_WINDOW_SIZE, _STREAM_WINDOW))


@dataclass(frozen=True, slots=True)
class Keepalive:
    """When a peer that says nothing, although something is expected of it, is taken for gone. In seconds."""

    after_s: float = 20.0
    """It is asked."""
    patience_s: float = 10.0
    """Longest until it says something then."""


class Stream:
    """What a connection has to know of one call."""

    __slots__ = ("held", "stream", "unsent", "window")

    ends_with_data: ClassVar[bool]
    """The last of `unsent` ends this end's side of the call."""

    def __init__(self) -> None:
        self.stream = 0
        self.unsent = memoryview(b"")
        self.window = 0
        """Bytes that the peer still takes of it."""
        self.held = 0
        """Bytes that came and that the peer has not been told to send as many more for."""

    @property
    def spent(self) -> int:
        """Those of `held` that take no room any more, or without which nothing can go on."""
        return self.held


_S = TypeVar("_S", bound=Stream)


class Connection(asyncio.Protocol, Generic[_S]):
    """One end. Used from its loop only.

    Args:
        keepalive: When a silent peer is gone.
    """

    def __init__(self, keepalive: Keepalive) -> None:
        self._keepalive = keepalive
        self._watching: asyncio.TimerHandle | None = None
        self._asked_at = 0.0
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._frames = FrameReader()
        self._header_reader = HeaderReader()
        self._out: list[bytes] = []
        self._streams: dict[int, _S] = {}
        self._unsent: dict[int, _S] = {}
        self._window = _FIRST_WINDOW
        self._stream_window = _FIRST_WINDOW
        self._frame_bytes = MAX_FRAME_BYTES
        self._before_block = b""
        """What the next header block has to begin with."""
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

    # What an end makes of it.

    def _came(self, stream: _S, data: bytes, *, last: bool) -> None:
        """Data of a call came."""
        raise NotImplementedError

    def _told(self, stream_id: int, headers: Headers, *, last: bool) -> None:
        """Headers came."""
        raise NotImplementedError

    def _was_reset(self, stream: _S, code: int) -> None:
        """The peer has ended a call at once."""
        raise NotImplementedError

    def _has_sent(self, stream: _S) -> None:
        """The connection has taken all of what a call had to send."""

    def _go_away(self, received: Frame) -> None:
        """The peer takes no further calls, or makes none."""

    def _set(self, name: int, value: int) -> None:
        """The peer has told one of its settings."""

    @property
    def _expects(self) -> bool:
        """Whether the peer has to be there."""
        raise NotImplementedError

    def _lost(self, reason: str) -> None:
        """The connection is over; called once or more."""
        raise NotImplementedError

    # For an end's use.

    def give_back(self, stream: _S) -> None:
        """Let the peer go on, if enough of what it has sent is spent."""
        spent = stream.spent
        if spent >= _GIVEN_BACK_BYTES and self._streams.get(stream.stream) is stream:
            stream.held -= spent
            self._put(frame(Kind.WINDOW_UPDATE, 0, stream.stream, struct.pack(">I", spent)))

    def lose(self, reason: str) -> None:
        """Give the connection up; its calls fail."""
        if self._transport is not None:
            self._transport.abort()
        self._end(reason)

    def _introduce(self, *own: tuple[Setting, int]) -> None:
        """Say what this end is like: the first frames that it sends.

        Args:
            own: Settings besides those of both ends.
        """
        self._put(settings((*_SETTINGS, *own)))
        self._put(frame(Kind.WINDOW_UPDATE, 0, 0, struct.pack(">I", _WINDOW_MAX - _FIRST_WINDOW)))

    def _add(self, stream: _S, stream_id: int) -> None:
        stream.stream, stream.window = stream_id, self._stream_window
        self._streams[stream_id] = stream

    def _drop(self, stream: _S) -> None:
        self._streams.pop(stream.stream, None)
        self._unsent.pop(stream.stream, None)

    def _put_headers(self, stream_id: int, block: bytes, *, last: bool) -> None:
        flags = END_STREAM if last else 0
        block, self._before_block = self._before_block + block, b""
        first, rest = block[: self._frame_bytes], block[self._frame_bytes :]
        self._put(frame(Kind.HEADERS, flags if rest else flags | END_HEADERS, stream_id, first))
        while rest:
            part, rest = rest[: self._frame_bytes], rest[self._frame_bytes :]
            self._put(frame(Kind.CONTINUATION, 0 if rest else END_HEADERS, stream_id, part))

    def _put_reset(self, stream_id: int, code: int) -> None:
        self._put(frame(Kind.RST_STREAM, 0, stream_id, struct.pack(">I", code)))

    def _send(self, stream: _S) -> None:
        """Send what is `unsent` of a call, as the peer takes it."""
        self._unsent[stream.stream] = stream
        while True:
            size = min(len(stream.unsent), self._frame_bytes, self._window, stream.window)
            if size <= 0:
                return
            part, stream.unsent = stream.unsent[:size], stream.unsent[size:]
            self._window -= size
            stream.window -= size
            done = not stream.unsent
            flags = END_STREAM if done and stream.ends_with_data else 0
            self._put(frame(Kind.DATA, flags, stream.stream, part))
            if done:
                del self._unsent[stream.stream]
                self._has_sent(stream)
                return

    def _begin_to_watch(self) -> None:
        """Begin to look after the peer, unless that is done already."""
        if self._watching is None:
            self._watching = self._loop.call_later(self._keepalive.after_s, self._watch)

    def _put(self, data: bytes) -> None:
        if not self._out:
            self._flush_soon()
        self._out.append(data)

    def _flush_soon(self) -> None:
        self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        out, self._out = self._out, []
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(b"".join(out))

    # asyncio's side.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It stands."""
        # uvloop's transports have no such class among theirs.
        self._transport = cast("asyncio.Transport", transport)
        self.last_heard = self._loop.time()

    def data_received(self, data: bytes) -> None:
        """Something came."""
        self.last_heard = self._loop.time()
        try:
            for received in self._frames.feed(data):
                self._take(received)
        except Http2Error as error:
            self._fail(f"the peer sent {error}")

    def _fail(self, reason: str) -> None:
        self.lose(reason)

    def connection_lost(self, exc: Exception | None) -> None:
        """It is closed."""
        self._end(f"the connection is closed ({exc!r})" if exc else "the connection is closed")

    def _take(self, received: Frame) -> None:
        if self._open_headers is not None and received.kind != Kind.CONTINUATION:
            raise Http2Error("headers that break off")
        handle = self._handlers.get(received.kind)
        if handle is not None:  # frames of kinds that nobody knows are to be passed over
            handle(received)

    def _end(self, reason: str) -> None:
        self._gone = True
        if self._watching is not None:
            self._watching.cancel()
        self._unsent.clear()
        self._lost(reason)

    # What comes.

    def _data(self, received: Frame) -> None:
        self._read_bytes += len(received.payload)
        if self._read_bytes > _WINDOW_MAX // 2:
            self._put(frame(Kind.WINDOW_UPDATE, 0, 0, struct.pack(">I", self._read_bytes)))
            self._read_bytes = 0
        stream = self._streams.get(received.stream)
        if stream is not None:
            stream.held += len(received.payload)
            self._came(stream, content(received), last=bool(received.flags & END_STREAM))

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
        # Read even if nobody wants it: those that follow may build on it.
        headers = self._header_reader.read(received.payload)
        self._told(received.stream, headers, last=bool(received.flags & END_STREAM))

    def _reset(self, received: Frame) -> None:
        code = number(received.payload)
        stream = self._streams.get(received.stream)
        if stream is not None:
            self._was_reset(stream, code)

    def _settings(self, received: Frame) -> None:
        if received.flags & ACK:
            return
        for name, value in read_settings(received.payload):
            if name == Setting.MAX_FRAME_SIZE:
                self._frame_bytes = min(max(value, MAX_FRAME_BYTES), 1 << 20)
            elif name == Setting.HEADER_TABLE_SIZE:
                if value < TABLE_BYTES:
                    # That the table has become smaller has to be told, also if none is used (RFC 7541, 4.2).
                    self._before_block = NO_TABLE
            elif name == Setting.INITIAL_WINDOW_SIZE:
                change, self._stream_window = value - self._stream_window, value
                for stream in self._streams.values():
                    stream.window += change
            else:
                self._set(name, value)
        self._put(frame(Kind.SETTINGS, ACK, 0))
        self._send_more()

    def _window_update(self, received: Frame) -> None:
        more = number(received.payload)
        if received.stream == 0:
            self._window += more
            self._send_more()
        elif (stream := self._streams.get(received.stream)) is not None:
            stream.window += more
            if received.stream in self._unsent:
                self._send(stream)

    def _send_more(self) -> None:
        for stream in list(self._unsent.values()):
            if self._window <= 0:
                return
            self._send(stream)

    def _ping(self, received: Frame) -> None:
        if not received.flags & ACK:
            self._put(frame(Kind.PING, ACK, 0, received.payload))

    def _refuse(self, received: Frame) -> None:
        raise Http2Error(f"a frame of type {received.kind}, which was not asked for")

    # Keeping alive.

    def _watch(self) -> None:
        """Ask after a peer that says nothing; one that does not answer is gone."""
        self._watching = None
        if not self._expects:  # a peer that is leaving is watched on: it may never come to the end of that
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
