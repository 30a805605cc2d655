"""Sends a feed to one HTTP client, as an ASGI response of its own: one task, no copy per event."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final, Protocol

from starlette.types import Receive, Scope, Send

from towline.relay import sse
from towline.relay.errors import RedisAwayError
from towline.relay.feed import Piece
from towline.relay.reader import Client

_log = logging.getLogger(__name__)

_HEADERS: Final = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    # nginx would hold events back otherwise.
    (b"x-accel-buffering", b"no"),
]
_RETRY_S: Final = 1.0

Translate = Callable[[Piece], bytes]
DIRECT: Final = "towline.direct"
"""Scope extension of our server (`towline.relay.http`): a `DirectConnection`."""


class DirectConnection(Protocol):
    """What the server offers beyond ASGI."""

    def write_chunk(self, chunk: bytes) -> bool:
        """See `reader.Direct`."""
        ...

    def when_lost(self, call: Callable[[], None] | None) -> None:
        """Have `call` called once the connection is lost, at once if it is."""
        ...

    def unsent(self) -> int:
        """Bytes that the other side has not taken yet, as far as they are in this process."""
        ...

    async def taken(self) -> None:
        """Wait until the other side has taken all but a little of what was written, or is gone."""
        ...

    def abort(self) -> None:
        """Close the connection at once, with what is unsent."""
        ...


class EventStreamResponse:
    """Sends what `client` reads until the stream is over or the other side leaves, or takes nothing.

    Args:
        client: Closed when the response ends.
        translate: From what was read to what is sent; default: as it is.
        first: Sent before anything else.
        ends_at: Unix time after which nothing more is sent: the caller's credentials have ended.
    """

    def __init__(
        self,
        client: Client,
        *,
        translate: Translate | None = None,
        first: Piece | None = None,
        ends_at: float | None = None,
    ) -> None:
        self._client = client
        self._translate = translate
        self._first = first
        self._ends_at = ends_at
        self._direct: DirectConnection | None = None
        self._gone = False
        self._finished = False
        """The response was ended, with the last piece."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI application."""
        client = self._client
        if scope["method"] == "HEAD":
            client.close()
            await send({"type": "http.response.start", "status": 200, "headers": list(_HEADERS)})
            await send({"type": "http.response.body", "body": b""})
            return
        client.task, client.ends_at = asyncio.current_task(), self._ends_at
        direct = self._direct = scope.get("extensions", {}).get(DIRECT)
        watcher: asyncio.Task[None] | None = None
        if direct is None:
            watcher = asyncio.create_task(self._watch(receive), name="sse-watch")
        else:
            direct.when_lost(self._leave)
            client.unsent = direct.unsent
        try:
            await send({"type": "http.response.start", "status": 200, "headers": list(_HEADERS)})
            first = None if self._is_unauthorized() else self._first
            await self._send_piece(send, first or Piece(b"", client.cursor), before=sse.OPENING)
            if first is None or not first.over:
                if self._translate is None and direct is not None:
                    client.direct = direct.write_chunk
                await self._pump(send)
            if not self._gone and not self._finished:
                await self._send(send, b"", last=True)
        except asyncio.CancelledError:
            if not client.dropped:
                raise
            # Left unfinished: the client resumes where it was. A mere close would wait for what is unsent.
            if direct is not None:
                direct.abort()
            _log.info("slow_client_dropped", extra={"stream": client.source.key})
        finally:
            if watcher is not None:
                watcher.cancel()
            if direct is not None:
                direct.when_lost(None)
            client.close()

    def _is_unauthorized(self) -> bool:
        return self._ends_at is not None and time.time() >= self._ends_at

    async def _pump(self, send: Send) -> None:
        client = self._client
        while not self._gone:
            try:
                piece = await client.next()
            except RedisAwayError:
                # The client keeps its place; a comment shows that we are here.
                await self._send(send, sse.HEARTBEAT)
                await asyncio.sleep(_RETRY_S)
                continue
            if self._gone or self._is_unauthorized():
                return
            if piece is not None:
                await self._send_piece(send, piece)
                if piece.over:
                    return
            elif client.beat:
                await self._send(send, sse.HEARTBEAT)

    async def _send_piece(self, send: Send, piece: Piece, *, before: bytes = b"") -> None:
        body = before + (piece.body if self._translate is None else self._translate(piece))
        if body:
            await self._send(send, body, last=piece.over)

    async def _send(self, send: Send, body: bytes, *, last: bool = False) -> None:
        client = self._client
        now = client.sending_since = asyncio.get_running_loop().time()
        await send({"type": "http.response.body", "body": body, "more_body": not last})
        if self._direct is not None:
            await self._direct.taken()
        client.sending_since, client.heard_at, client.beat = None, now, False
        self._finished = last

    async def _watch(self, receive: Receive) -> None:
        with suppress(asyncio.CancelledError):
            while (await receive())["type"] != "http.disconnect":
                pass
            self._leave()

    def _leave(self) -> None:
        self._gone = True
        self._client.news.set()
