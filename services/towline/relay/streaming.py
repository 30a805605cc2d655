"""Sends a feed to one HTTP client, as an ASGI response of its own: one task, no copy per event."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Final

from starlette.types import Receive, Scope, Send

from towline.relay import sse
from towline.relay.errors import RedisAwayError
from towline.relay.hub import Client, Piece

_log = logging.getLogger(__name__)

_HEADERS: Final = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    # nginx would hold events back otherwise.
    (b"x-accel-buffering", b"no"),
]
_RETRY_S: Final = 1.0

Translate = Callable[[Piece], bytes]


class EventStreamResponse:
    """Sends what `client` reads until the stream is over or the other side leaves, or takes nothing.

    Args:
        client: Closed when the response ends.
        heartbeat_s: A comment is sent after so long without an event.
        send_timeout_s: A client that takes nothing for so long is dropped.
        translate: From what was read to what is sent; default: as it is.
        first: Sent before anything else.
        ends_at: Unix time after which nothing more is sent: the caller's credentials have ended.
    """

    def __init__(
        self,
        client: Client,
        *,
        heartbeat_s: float,
        send_timeout_s: float,
        translate: Translate | None = None,
        first: Piece | None = None,
        ends_at: float | None = None,
    ) -> None:
        self._client = client
        self._heartbeat_s = heartbeat_s
        self._send_timeout_s = send_timeout_s
        self._translate = translate
        self._first = first
        self._ends_at = ends_at
        self._gone = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI application."""
        del scope
        watcher = asyncio.create_task(self._watch(receive), name="sse-watch")
        try:
            await self._send(send, {"type": "http.response.start", "status": 200, "headers": list(_HEADERS)})
            await self._send_body(send, sse.OPENING)
            if self._first is not None:
                await self._send_piece(send, self._first)
            if self._first is None or not self._first.over:
                await self._pump(send)
            if not self._gone:
                await self._send(send, {"type": "http.response.body", "body": b"", "more_body": False})
        except TimeoutError:
            self._client.drop()
            _log.info("slow_client_dropped", extra={"stream": self._client.source.key})
        finally:
            watcher.cancel()
            self._client.close()

    async def _pump(self, send: Send) -> None:
        while not self._gone:
            try:
                piece = await self._client.next(self._heartbeat_s)
            except RedisAwayError:
                # The client keeps its place; a comment shows that we are here.
                await self._send_body(send, sse.HEARTBEAT)
                await asyncio.sleep(_RETRY_S)
                continue
            if self._gone or (self._ends_at is not None and time.time() >= self._ends_at):
                return
            if piece is None:
                await self._send_body(send, sse.HEARTBEAT)
                continue
            await self._send_piece(send, piece)
            if piece.over:
                return

    async def _send_piece(self, send: Send, piece: Piece) -> None:
        body = piece.body if self._translate is None else self._translate(piece)
        if body:
            await self._send_body(send, body)

    async def _send_body(self, send: Send, body: bytes) -> None:
        await self._send(send, {"type": "http.response.body", "body": body, "more_body": True})

    async def _send(self, send: Send, message: dict[str, Any]) -> None:
        sending: Awaitable[None] = send(message)
        async with asyncio.timeout(self._send_timeout_s):
            await sending

    async def _watch(self, receive: Receive) -> None:
        with suppress(asyncio.CancelledError):
            while (await receive())["type"] != "http.disconnect":
                pass
            self._gone = True
            self._client.news.set()
