"""A call as the server has it: its message as it comes, and the answers to it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final

import grpc

from towline.http2.connection import Stream
from towline.http2.headers import Headers
from towline.http2.messages import PREFIX_BYTES, prefixed
from towline.http2.requests import SUCCEEDED, Request, decompressed, ended

if TYPE_CHECKING:
    from towline.http2.server_connection import ServerConnection

Handler = Callable[["ServedCall", bytes], None]
"""Takes a call and its request. If it raises, the call ends as UNKNOWN and the log has why."""
Admits = Callable[[str, Headers], bool]
"""Whether a call is taken at all, by its path and metadata: asked before its message comes."""
_Code: Final = grpc.StatusCode
_NOT_ONE: Final = "a call needs one message, whole"


class ServedCall(Stream):
    """One call under way. Used from its loop only.

    Args:
        connection: What it came over.
        request: What its headers say.
        handler: Gets it when its message is there.
        message_bytes_max: A larger message is refused.
    """

    __slots__ = (
        "_body",
        "_connection",
        "_gone",
        "_handler",
        "_message_bytes_max",
        "_request",
        "_sent",
        "_timer",
        "asked",
        "ended",
        "opened",
        "trailers",
    )

    ends_with_data = False

    def __init__(
        self, connection: ServerConnection, request: Request, handler: Handler, message_bytes_max: int
    ) -> None:
        super().__init__()
        self._connection = connection
        self._request = request
        self._handler = handler
        self._message_bytes_max = message_bytes_max
        self._body = bytearray()
        self._gone: Callable[[], object] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._sent: Callable[[bool], None] | None = None
        self.opened = False
        """Its headers have been sent."""
        self.asked = False
        """All of its request is there."""
        self.ended = False
        """It has its status, or the caller has gone away."""
        self.trailers: bytes | None = None
        """To be sent after what is `unsent`."""

    @property
    def metadata(self) -> Headers:
        """Headers of the call, but for those of HTTP/2."""
        return self._request.metadata

    # For its handler.

    def watch(self, gone: Callable[[], object]) -> None:
        """Call ``gone`` if the caller cancels, is out of time or disconnects before the call has ended."""
        loop = self._connection.loop
        if self.ended:
            loop.call_soon(gone)
            return
        self._gone = gone
        if self._request.timeout_s is not None:
            self._timer = loop.call_later(self._request.timeout_s, self._out_of_time)

    def open(self) -> None:
        """Send the headers of a stream: the caller takes them for "connected"."""
        if not self.ended:
            self._connection.open(self)

    def send(self, messages: Iterable[bytes], sent: Callable[[bool], None]) -> None:
        """Send messages of a stream.

        Args:
            messages: Sent in one piece, as far as the caller takes it.
            sent: Is told when more may follow. False: the call is over.
        """
        if self.ended:
            self._connection.loop.call_soon(sent, False)
            return
        self.open()
        self._sent = sent
        self._connection.send(self, b"".join(map(prefixed, messages)))

    def flush(self) -> None:
        """Write what was sent at once, not when the loop next comes to it."""
        self._connection.flush()

    async def write(self, message: bytes) -> None:
        """Send one message of a stream.

        Raises:
            ConnectionError: The caller has gone away.
        """
        future: asyncio.Future[bool] = self._connection.loop.create_future()
        self.send((message,), lambda success: None if future.done() else future.set_result(success))
        if not await future:
            raise ConnectionError("the caller has gone away")

    def reply(self, message: bytes) -> None:
        """Answer a unary call."""
        if not self.ended:
            self._over()
            self._connection.answer(self, prefixed(message))

    def end(self, code: grpc.StatusCode = _Code.OK, details: str = "") -> None:
        """End the call with a status and no (further) message."""
        if self.ended:
            return
        self._over()
        if code is _Code.OK and self.opened:
            self._connection.end(self, SUCCEEDED)
        else:
            self._connection.end(self, ended(code.value[0], details, opened=self.opened))

    # For its connection.

    def take(self, data: bytes, *, last: bool) -> None:
        """A part of the request came."""
        if self.ended or self.asked:
            return
        self.asked, limit = last, self._message_bytes_max
        if self._body or not last:
            self._body += data
            prefix = self._body[:PREFIX_BYTES]
        else:
            prefix = data[:PREFIX_BYTES]
        size = int.from_bytes(prefix[1:], "big")
        if len(prefix) == PREFIX_BYTES and size > limit:
            self._body.clear()
            self.end(_Code.RESOURCE_EXHAUSTED, f"Received message larger than max ({size} vs. {limit})")
        elif last:
            self._hand_over(bytes(self._body) or data)
        elif len(self._body) > PREFIX_BYTES + size:
            self._body.clear()
            self.end(_Code.INTERNAL, _NOT_ONE)

    def _hand_over(self, body: bytes) -> None:
        self._body.clear()
        size = len(body) - PREFIX_BYTES
        if size < 0 or size != int.from_bytes(body[1:PREFIX_BYTES], "big"):
            self.end(_Code.INTERNAL, _NOT_ONE)
            return
        message = body[PREFIX_BYTES:]
        if not body[0]:
            self._handler(self, message)
            return
        limit = self._message_bytes_max
        try:
            whole = decompressed(message, self._request.window_bits, limit)
        except ValueError as error:
            self.end(_Code.INTERNAL, f"the message can't be decompressed: {error}")
            return
        if whole is None:
            self.end(_Code.RESOURCE_EXHAUSTED, f"Received message larger than max (decompressed, {limit})")
        else:
            self._handler(self, whole)

    def has_sent(self, *, success: bool) -> None:
        """More may follow, or nothing can any more."""
        sent, self._sent = self._sent, None
        if sent is not None:
            sent(success)

    def caller_gone(self) -> None:
        """Nobody waits for it any more."""
        gone, was_ended = self._gone, self.ended
        self._over()
        self.has_sent(success=False)
        if gone is not None and not was_ended:
            gone()

    def _out_of_time(self) -> None:
        self._timer = None
        if not self.ended:
            gone = self._gone
            self.end(_Code.DEADLINE_EXCEEDED, "Deadline Exceeded")
            if gone is not None:
                gone()

    def _over(self) -> None:
        self.ended, self._gone = True, None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
