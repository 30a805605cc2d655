"""One client of a feed: a position, not a buffer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from towline.contracts.stream import TERMINAL_ENTRY_TYPES, TYPE_FIELD
from towline.relay import sse
from towline.relay.feed import Feed, Piece, Source

if TYPE_CHECKING:
    from towline.relay.hub import Hub

Direct = Callable[[bytes], bool]
"""Writes a chunk of a response under way; False if that is not possible without waiting."""


class Client:
    """One reader of one stream. `next` is called by one task at a time.

    While that task waits for news, news are written to the connection without waking it, if `direct` is set.

    Args:
        hub: Where it belongs.
        source: What it reads.
        cursor: Id of the last entry that it has.
    """

    __slots__ = (
        "_generation",
        "_hub",
        "_over",
        "_waits",
        "beat",
        "cursor",
        "direct",
        "dropped",
        "ends_at",
        "feed",
        "heard_at",
        "left",
        "news",
        "sending_since",
        "source",
        "task",
        "unsent",
    )

    def __init__(self, hub: Hub, source: Source, cursor: str) -> None:
        self._hub = hub
        self.source = source
        self.cursor = cursor
        self.news = asyncio.Event()
        self.feed: Feed | None = None
        self._generation: int = 0
        self._over = False
        self._waits = False
        self.direct: Direct | None = None
        self.ends_at: float | None = None
        """Unix time after which nothing more is sent: the caller's credentials have ended."""
        self.beat = False
        """A heartbeat is due."""
        self.heard_at = 0.0
        """Loop time of the last thing sent."""
        self.sending_since: float | None = None
        """Loop time since which nothing of what is being sent was taken."""
        self.unsent: Callable[[], int] | None = None
        """Tells how many bytes of it the other side has not taken yet, if anybody knows."""
        self.left = 0
        """What it told last."""
        self.task: asyncio.Task[Any] | None = None
        """Cancelled when the other side takes nothing for too long; `dropped` says so."""
        self.dropped = False

    async def next(self) -> Piece | None:
        """What comes after the cursor; waits for it. None if it was woken for something else.

        Raises:
            RedisAwayError: Redis is away and what is asked for is not kept here.
        """
        piece = await self.look()
        if piece is not None:
            return piece
        self._waits = True
        try:
            await self.news.wait()
        finally:
            self._waits = False
        return await self._take()

    async def look(self) -> Piece | None:
        """As `next`, without waiting: None if nothing is there now."""
        return Piece(b"", self.cursor, over=True) if self._hub.closed else await self._take()

    def offer(self, chunk: bytes, before: str, after: str, now: float) -> bool:
        """Send the entries after `before` up to `after` at once, if they are just what is waited for.

        Args:
            chunk: The entries as a chunk of the response.
            before: Id of the last entry before them.
            after: Id of the last one of them.
            now: Loop time.
        """
        if (
            not self._waits
            or self.direct is None
            or self.cursor != before
            or self.feed is None
            or self.feed.generation != self._generation
            or self.news.is_set()
            or (self.ends_at is not None and time.time() >= self.ends_at)
        ):
            return False
        if chunk:
            if not self.direct(chunk):
                return False
            self.heard_at, self.beat = now, False
        self.cursor = after
        return True

    async def next_within(self, timeout_s: float) -> Piece | None:
        """As `next`, for at most `timeout_s`."""
        try:
            async with asyncio.timeout(timeout_s):
                return await self.next()
        except TimeoutError:
            return None

    async def _take(self) -> Piece | None:
        self.news.clear()
        if self._over:
            return Piece(b"", self.cursor, over=True)
        feed = self.feed
        if feed is not None and feed.generation != self._generation:
            self._generation, self.cursor = feed.generation, sse.START_ID
            return Piece(sse.reset("lost"), self.cursor)
        kept = None if feed is None else feed.after(self.cursor)
        if kept is None:
            return await self._catch_up()
        body, self.cursor = kept
        over = feed is not None and feed.ended
        return Piece(body, self.cursor, over=over) if body or over else None

    async def _catch_up(self) -> Piece | None:
        """A page from Redis; joins the feed once it is at the end of the stream."""
        entries, more, valid, over = await self._hub.read(self.source, self.cursor)
        if not entries and (not valid or self.cursor == sse.START_ID) and self.source.ending is not None:
            last = await self.source.ending()
            if last is not None and self.cursor == sse.START_ID:
                entries = [last]
            elif last is not None and self.cursor == last[0]:
                valid = over = True
        self._over = over
        if not valid:
            self.cursor = sse.START_ID
            return Piece(sse.reset("trimmed"), self.cursor)
        pieces: list[bytes] = []
        for entry_id, fields in entries:
            pieces.append(self.source.encode(entry_id, fields))
            self.cursor = entry_id
            if fields.get(TYPE_FIELD) in TERMINAL_ENTRY_TYPES:
                self._over = True
                break
        if not self._over and not more and self.feed is None:
            feed = self.feed = self._hub.join(self)
            self._generation = feed.generation
        if not pieces and self.feed is not None and not self.news.is_set():
            return None
        return Piece(b"".join(pieces), self.cursor, over=self._over)

    def close(self) -> None:
        """Leave. Idempotent."""
        self._hub.leave(self)
        self.feed = None
