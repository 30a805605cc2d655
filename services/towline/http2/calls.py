"""gRPC calls to one address, over one HTTP/2 connection that is made anew as needed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from functools import partial
from typing import Final, TypeVar

import grpc

from towline.http2.connection import Keepalive
from towline.http2.exchange import ANSWER_BYTES_MAX, Call, NotTakenError, rpc_error
from towline.http2.headers import header_block
from towline.http2.link import Link
from towline.http2.streams import Incoming, ServerStream

_CONNECT_S: Final = 10.0
_AGAIN_S: Final = 0.02
"""Until a call that the peer has not looked at is made again."""
_GIVE_UP: Final = grpc.StatusCode.DEADLINE_EXCEEDED
_T = TypeVar("_T")
Metadata = Iterable[tuple[str, str]]


class Calls:
    """Belongs to the loop that it is used on. Plain text only.

    Args:
        host: Name or address.
        port: TCP port.
        answer_bytes_max: A larger answer, or message of a stream, is an error.
        keepalive: When a peer that says nothing while calls are open is gone.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        answer_bytes_max: int = ANSWER_BYTES_MAX,
        keepalive: Keepalive | None = None,
    ) -> None:
        self._host, self._port = host, port
        self._answer_bytes_max = answer_bytes_max
        self._keepalive = keepalive
        self._link: Link | None = None
        self._links: list[Link] = []
        """Those that are open: what is under way may be on one that takes no further calls."""
        self._connecting: asyncio.Task[Link] | None = None
        self._blocks: dict[tuple[str, float | None], bytes] = {}
        self._metadata: Metadata | None = None
        self._closed = False

    async def call(self, path: str, message: bytes, *, timeout_s: float, metadata: Metadata) -> bytes:
        """One call; answers the message that came back.

        Args:
            path: ``/service/method``.
            message: The request, serialized.
            timeout_s: Longest that it may take, connecting included.
            metadata: Headers of the call. Give the same object each time: it is encoded once.

        Raises:
            grpc.aio.AioRpcError: As gRPC's own clients raise it.
        """
        loop = asyncio.get_running_loop()
        ends_at = loop.time() + timeout_s
        block = self._block(path, timeout_s, metadata)
        while True:
            link = await self._ready(ends_at - loop.time())
            call = Call(block, message, loop.create_future(), self._answer_bytes_max)
            try:
                return await self._made(link, call, ends_at)
            except NotTakenError as error:
                if loop.time() + _AGAIN_S >= ends_at:
                    raise rpc_error(grpc.StatusCode.UNAVAILABLE, str(error)) from error
                await asyncio.sleep(_AGAIN_S)

    def stream(
        self, path: str, message: bytes, *, decode: Callable[[bytes], _T], metadata: Metadata
    ) -> ServerStream[_T]:
        """A call that is answered by a stream, and may last.

        Args:
            path: ``/service/method``.
            message: The request, serialized.
            decode: Makes of a message what the stream's reader gets.
            metadata: As for `call`.
        """
        incoming = Incoming(self._block(path, None, metadata), message, self._answer_bytes_max)
        return ServerStream(partial(self._ready, _CONNECT_S), incoming, decode)

    def close(self) -> None:
        """Close the connection; calls that are open fail. No further ones can be made."""
        self._closed = True
        if self._connecting is not None:
            self._connecting.cancel()
        for link in self._links:
            link.lose("closed here")

    async def _ready(self, timeout_s: float) -> Link:
        link = self._link
        if link is None or not link.takes_calls:
            return await self._connected(timeout_s)
        return link

    async def _made(self, link: Link, call: Call, ends_at: float) -> bytes:
        loop = asyncio.get_running_loop()
        link.start(call)
        timer = loop.call_at(ends_at, self._too_late, link, call, loop.time())
        try:
            return await call.answer
        except asyncio.CancelledError:
            link.abandon(call)
            raise
        finally:
            timer.cancel()

    def _too_late(self, link: Link, call: Call, began: float) -> None:
        if call.answer.done():
            return
        link.abandon(call)
        call.fail(rpc_error(_GIVE_UP, "no answer in time"))
        if link.last_heard < began:
            # Nothing at all has come since: whoever was there is gone without a word.
            link.lose("the peer is silent")

    async def _connected(self, timeout_s: float) -> Link:
        if self._closed:
            raise rpc_error(grpc.StatusCode.CANCELLED, "closed here")
        if self._connecting is None:
            self._connecting = asyncio.get_running_loop().create_task(self._connect())
            self._connecting.add_done_callback(self._connect_ended)
        try:
            async with asyncio.timeout(timeout_s):
                return await asyncio.shield(self._connecting)
        except asyncio.CancelledError:
            if not self._closed:
                raise
            raise rpc_error(grpc.StatusCode.CANCELLED, "closed here") from None
        except OSError as error:  # a TimeoutError is one too
            at = f"{self._host}:{self._port}"
            raise rpc_error(grpc.StatusCode.UNAVAILABLE, f"no connection to {at}: {error!r}") from error

    async def _connect(self) -> Link:
        async with asyncio.timeout(_CONNECT_S):
            _, link = await asyncio.get_running_loop().create_connection(
                partial(Link, self._keepalive), self._host, self._port
            )
        self._link = link
        self._links = [*(one for one in self._links if one.is_open), link]
        return link

    def _connect_ended(self, task: asyncio.Task[Link]) -> None:
        self._connecting = None
        if not task.cancelled():
            task.exception()  # those who wait for it are told

    def _block(self, path: str, timeout_s: float | None, metadata: Metadata) -> bytes:
        if metadata is not self._metadata:
            self._metadata = metadata
            self._blocks.clear()
        block = self._blocks.get((path, timeout_s))
        if block is None:
            block = self._blocks[path, timeout_s] = header_block(
                (
                    (":method", "POST"),
                    (":scheme", "http"),
                    (":path", path),
                    (":authority", f"{self._host}:{self._port}"),
                    ("te", "trailers"),
                    ("content-type", "application/grpc"),
                    *(() if timeout_s is None else (("grpc-timeout", f"{max(1, int(timeout_s * 1000))}m"),)),
                    *((name.lower(), value) for name, value in metadata),
                )
            )
        return block
