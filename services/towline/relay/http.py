"""uvicorn's HTTP protocol, where an event stream's chunks are written and its client leaves without a task.

Of what an event costs each client, most would be the way through tasks and ASGI calls; here it is one write.
Whenever more than that is needed (the client is slow, the response not under way), the usual way is taken.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, ClassVar, Final, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from towline.relay.streaming import DIRECT

_HEAD_BYTES_MAX: Final = 65_536


class StreamingProtocol(HttpToolsProtocol):
    """See the module.

    It also ends connections on which nothing goes on: uvicorn waits for ever for a request that has begun (or
    never does) and for a client to take an answer, and keeps all of a request's head however long it is.
    """

    send_timeout_s: ClassVar[float] = 20.0
    """A client that takes nothing of an answer for so long is cut off; event streams have their own clock."""
    request_timeout_s: ClassVar[float] = 30.0
    """So long a connection may go without a whole request head, or without more of a body that has begun."""

    _lost = False
    _when_lost: Callable[[], None] | None = None
    _head_bytes = 0
    """Since the last that was more than part of a head."""
    _request_timer: asyncio.TimerHandle | None = None
    _whole = True
    """No request is half read."""
    _send_timer: asyncio.TimerHandle | None = None
    _left = 0
    """Bytes of answers that the other side had not taken when the send timer was set."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Called by the transport."""
        super().connection_made(transport)
        self._await_request()

    def data_received(self, data: bytes) -> None:
        """Called by the transport."""
        self._head_bytes += len(data)
        super().data_received(data)
        if self._head_bytes > _HEAD_BYTES_MAX and not self.transport.is_closing():
            self._refuse_head()

    def on_headers_complete(self) -> None:
        """Called by the parser."""
        self._head_bytes = 0
        self._await_request()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Called by the parser."""
        self._head_bytes = 0
        self._await_request()
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Called by the parser."""
        self._whole = True
        self._request_timer = _cancelled(self._request_timer)
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """An answer was written: called by its cycle."""
        super().on_response_complete()
        if not self._lost:
            self._await_request()
            self._await_taken()

    def pause_writing(self) -> None:
        """The other side does not keep up: called by the transport."""
        super().pause_writing()
        self._await_taken()

    def resume_writing(self) -> None:
        """It has taken most of it: called by the transport."""
        super().resume_writing()
        self._send_timer = _cancelled(self._send_timer)

    def _refuse_head(self) -> None:
        if self._answers():
            self.transport.abort()
            return
        said = b"the head of a request may have at most %d bytes" % _HEAD_BYTES_MAX
        self.transport.write(
            b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\n"
            b"content-type: text/plain; charset=utf-8\r\ncontent-length: %d\r\n\r\n%b" % (len(said), said)
        )
        self.transport.close()

    def _answers(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete  # pyright: ignore[reportUnnecessaryComparison]

    def _await_request(self) -> None:
        _cancelled(self._request_timer)
        self._request_timer = self.loop.call_later(self.request_timeout_s, self._request_is_late)

    def _request_is_late(self) -> None:
        self._request_timer = None
        if self.flow.read_paused:
            # It is not the other side that is late.
            self._await_request()
        elif not self._whole or not self._answers():
            self.transport.close()

    def _await_taken(self) -> None:
        _cancelled(self._send_timer)
        self._left = self.unsent()
        self._send_timer = (
            self.loop.call_later(self.send_timeout_s, self._taking_is_late) if self._left else None
        )

    def _taking_is_late(self) -> None:
        self._send_timer = None
        if self._when_lost is None and self.unsent() >= self._left:
            self.transport.abort()
        else:
            self._await_taken()

    def connection_lost(self, exc: Exception | None) -> None:
        """The other side is gone: called by the transport."""
        super().connection_lost(exc)
        self._request_timer = _cancelled(self._request_timer)
        self._send_timer = _cancelled(self._send_timer)
        self._lost = True
        self.when_lost(self._when_lost)
        if self.cycle is not None:  # pyright: ignore[reportUnnecessaryComparison] - a connection without a request
            # Else each connection that has been would be left to the garbage collector.
            cast("dict[str, Any]", self.cycle.scope)["extensions"].clear()

    def when_lost(self, call: Callable[[], None] | None) -> None:
        """Have `call` called once the connection is lost, at once if it is; None: nobody cares any more."""
        self._when_lost = call
        if self._lost and call is not None:
            self._when_lost = None
            call()

    def unsent(self) -> int:
        """Bytes that the other side has not taken yet, as far as they are in this process."""
        return self.transport.get_write_buffer_size()

    async def taken(self) -> None:
        """Wait until the other side has taken all but a little of what was written, or is gone.

        uvicorn waits for that before it writes more, and after the last write not at all.
        """
        await self.flow.drain()

    def abort(self) -> None:
        """Close the connection at once, with what is unsent."""
        self.transport.abort()

    def on_message_begin(self) -> None:
        """A request begins: called by the parser."""
        self._whole = False
        super().on_message_begin()
        cast("dict[str, Any]", self.scope)["extensions"] = {DIRECT: self}

    def write_chunk(self, chunk: bytes) -> bool:
        """Write a chunk of the body of the response under way; False if it has to go the usual way."""
        cycle, transport = self.cycle, self.transport
        if (
            not cycle.chunked_encoding
            or cycle.response_complete
            or cycle.disconnected
            or self.flow.write_paused
            or transport.is_closing()
        ):
            return False
        transport.write(chunk)
        return True


def _cancelled(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
