"""Calls that are answered by messages, one after the other."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from typing import Generic, Self, TypeVar

import grpc

from towline.http2.exchange import Exchange, NotTakenError, rpc_error
from towline.http2.link import Link
from towline.http2.messages import PREFIX_BYTES

_T = TypeVar("_T")


class Incoming(Exchange):
    """The messages of one call, as they come. The peer gets no further ahead of the reader than its window.

    Args:
        block: Its headers, as they are sent.
        message: The request.
        message_bytes_max: A larger message is an error.
    """

    __slots__ = (
        "_message_bytes_max",
        "_news",
        "_part",
        "_unread",
        "_wanted",
        "ended",
        "error",
        "messages",
        "opened",
    )

    def __init__(self, block: bytes, message: bytes, message_bytes_max: int) -> None:
        super().__init__(block, message)
        self.messages: deque[bytes] = deque()
        self.opened = False
        """The peer has sent its headers."""
        self.ended = False
        """Nothing more will come."""
        self.error: Exception | None = None
        self._message_bytes_max = message_bytes_max
        self._part = bytearray()
        self._wanted = 0
        """Bytes that `_part` must have before it is worth looking at."""
        self._unread = 0
        self._news: asyncio.Future[None] | None = None

    @property
    def spent(self) -> int:
        """What has been read, and of the message that is on its way."""
        return self.held - self._unread

    def told(self, headers: Iterable[tuple[str, str]], *, last: bool) -> None:
        """Headers came, or trailers."""
        super().told(headers, last=last)
        if not last and self._headers.get(":status") == "200":
            self.opened = True
            self._tell()

    def take(self, data: bytes) -> None:
        """A part of a message came, or several messages."""
        if not self.opened:
            return  # a page that says what is wrong
        if self._part:
            self._part += data
            if len(self._part) < self._wanted:
                return
            data = bytes(self._part)
            self._part.clear()
        at, end = 0, len(data)
        self._wanted = PREFIX_BYTES
        while end - at >= PREFIX_BYTES:
            size = int.from_bytes(data[at + 1 : at + PREFIX_BYTES], "big")
            if data[at]:
                raise rpc_error(grpc.StatusCode.INTERNAL, "a message that is compressed")
            if size > self._message_bytes_max:
                raise rpc_error(
                    grpc.StatusCode.RESOURCE_EXHAUSTED,
                    f"a message of {size} bytes, larger than {self._message_bytes_max}",
                )
            after = at + PREFIX_BYTES + size
            if after > end:
                self._wanted = PREFIX_BYTES + size
                break
            self.messages.append(data[at + PREFIX_BYTES : after])
            self._unread += after - at
            at = after
        self._part += data[at:]
        if self.messages:
            self._tell()

    def next(self) -> bytes:
        """The message that is the reader's turn."""
        message = self.messages.popleft()
        self._unread -= len(message) + PREFIX_BYTES
        return message

    def fail(self, error: Exception) -> None:
        """End it with an error, after what has come."""
        if not self.ended:
            self.ended, self.error = True, error
            self._tell()

    def end(self) -> None:
        """Nothing more will come."""
        error = self._status_error()
        if error is None and self._part:
            error = rpc_error(grpc.StatusCode.INTERNAL, "a message that breaks off")
        if error is not None:
            self.fail(error)
        else:
            self.ended = True
            self._tell()

    async def news(self) -> None:
        """Wait until something has come, or it has ended. One waits at a time."""
        self._news = asyncio.get_running_loop().create_future()
        try:
            await self._news
        finally:
            self._news = None

    def _tell(self) -> None:
        if self._news is not None and not self._news.done():
            self._news.set_result(None)


class ServerStream(Generic[_T]):
    """What a peer streams, for one reader. Begins when it is first waited for.

    Iterating ends when the peer ends the call in order, else it raises `grpc.aio.AioRpcError`; what has come
    before is read first.

    Args:
        connect: Gives the connection that it is to go over.
        incoming: The call.
        decode: Makes of a message what the reader gets.
    """

    def __init__(
        self, connect: Callable[[], Awaitable[Link]], incoming: Incoming, decode: Callable[[bytes], _T]
    ) -> None:
        self._connect, self._incoming, self._decode = connect, incoming, decode
        self._link: Link | None = None

    async def initial_metadata(self) -> None:
        """Wait until the peer has opened the stream.

        Raises:
            grpc.aio.AioRpcError: It does not.
        """
        incoming = self._incoming
        await self._begin()
        while not (incoming.opened or incoming.ended):
            await incoming.news()
        if not incoming.opened:
            self._raise()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> _T:
        incoming = self._incoming
        if self._link is None:
            await self._begin()
        while not incoming.messages:
            if incoming.ended:
                self._raise()
                raise StopAsyncIteration
            await incoming.news()
        message = incoming.next()
        if self._link is not None:
            self._link.give_back(incoming)
        return self._decode(message)

    def cancel(self) -> None:
        """End it; who reads it gets CANCELLED, and nothing of what has come."""
        self._incoming.messages.clear()
        self._incoming.fail(rpc_error(grpc.StatusCode.CANCELLED, "cancelled here"))
        if self._link is not None:
            self._link.abandon(self._incoming)

    async def _begin(self) -> None:
        if self._link is None and not self._incoming.ended:
            self._link = await self._connect()
            if not self._incoming.ended:
                self._link.start(self._incoming)

    def _raise(self) -> None:
        error = self._incoming.error
        if isinstance(error, NotTakenError):
            raise rpc_error(grpc.StatusCode.UNAVAILABLE, str(error)) from error
        if error is not None:
            raise error
