"""One reader of each run's stream for all of its clients.

A `Feed` keeps the newest entries of one stream, encoded once. One loop reads all feeds that have news in one
pipeline; news come over one pub/sub connection, and a slow poll makes up for messages that pub/sub lost. A
client is a position, not a buffer: one that falls behind the feed's entries catches up from Redis by itself.

Each read begins at the last entry it knows. If that entry is gone (trimmed, or lost by Redis), nothing can be
said about what comes between: the reader gets `reset` and the stream from its beginning.
"""

from __future__ import annotations

import asyncio
import logging
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

import redis
from redis.asyncio import Redis

from towline.contracts.stream import DATA_FIELD, TERMINAL_ENTRY_TYPES, TYPE_FIELD
from towline.relay import sse
from towline.relay.errors import RedisAwayError, is_redis_away

_log = logging.getLogger(__name__)

_PAGE_COUNT: Final = 500
_KEEP_COUNT: Final = 1_000
_KEEP_BYTES: Final = 1_000_000
_POLL_S: Final = 2.0
_WAVE_S: Final = 0.01
"""Shortest time between two reads: what comes in between shares a read and a write."""
_PIPELINE_COUNT: Final = 200
_IDLE_CHANNEL: Final = "towline:relay:idle"
"""Never published to: a pub/sub connection is in use from its first subscription on."""
_BACKOFF_S: Final = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0)

Encode = Callable[[str, dict[str, str]], bytes]
RawEntry = tuple[str, dict[str, str]]


def encode_entry(entry_id: str, fields: dict[str, str]) -> bytes:
    """An entry of a run's stream as an SSE event."""
    return sse.encode(entry_id, fields.get(TYPE_FIELD, "message"), fields.get(DATA_FIELD, "{}"))


@dataclass(frozen=True, slots=True)
class Source:
    """A stream that is fed to clients."""

    key: str
    channel: str
    encode: Encode = encode_entry
    variant: str = ""
    """Clients of one key with the same variant share a feed: they see the same bytes."""

    @property
    def name(self) -> str:
        """What feeds are known by."""
        return f"{self.key}\n{self.variant}"


@dataclass(slots=True)
class Piece:
    """What a client is to be sent next."""

    body: bytes
    cursor: str
    """Where the client is after it."""
    over: bool = False
    """The stream ends here."""


class Feed:
    """The newest entries of one stream, for any number of clients.

    `floor` is the id after which the kept entries begin. `generation` grows with each reset.
    """

    __slots__ = ("_bytes", "_found", "bodies", "clients", "ended", "floor", "generation", "ids", "source")

    def __init__(self, source: Source, floor: str) -> None:
        self.source = source
        self.floor = floor
        self.ids: list[tuple[int, int]] = []
        self.bodies: list[bytes] = []
        self.clients: set[Client] = set()
        self.generation: int = 0
        self.ended = False
        self._bytes = 0
        self._found: tuple[str, bytes, str] | None = None

    @property
    def last(self) -> str:
        """Id of the newest entry."""
        return "{}-{}".format(*self.ids[-1]) if self.ids else self.floor

    def extend(self, entries: Sequence[RawEntry]) -> None:
        """Newer entries came."""
        self._found = None
        for entry_id, fields in entries:
            body = self.source.encode(entry_id, fields)
            self.ids.append(sse.id_key(entry_id))
            self.bodies.append(body)
            self._bytes += len(body)
            if fields.get(TYPE_FIELD) in TERMINAL_ENTRY_TYPES:
                self.ended = True
                break
        drop = 0
        while len(self.ids) - drop > _KEEP_COUNT or (self._bytes > _KEEP_BYTES and len(self.ids) - drop > 1):
            self._bytes -= len(self.bodies[drop])
            drop += 1
        if drop:
            self.floor = "{}-{}".format(*self.ids[drop - 1])
            del self.ids[:drop], self.bodies[:drop]

    def restart(self) -> None:
        """What was known is void: begin before the first entry."""
        self.floor, self.ended, self._bytes, self._found = sse.START_ID, False, 0, None
        self.ids.clear()
        self.bodies.clear()
        self.generation += 1

    def after(self, cursor: str) -> tuple[bytes, str] | None:
        """Kept entries after `cursor` and where they lead; None if `cursor` lies before what is kept."""
        # Most clients are at the same place: what one was given fits the next.
        if self._found is not None and self._found[0] == cursor:
            return self._found[1:]
        key = sse.id_key(cursor)
        if key < sse.id_key(self.floor):
            return None
        begin = bisect_right(self.ids, key)
        if begin == len(self.ids):
            return b"", cursor
        self._found = (cursor, b"".join(self.bodies[begin:]), self.last)
        return self._found[1:]

    def wake(self) -> None:
        """Tell all clients to look."""
        for client in self.clients:
            client.news.set()


class Client:
    """One reader of one stream. `next` is called by one task at a time.

    Args:
        hub: Where it belongs.
        source: What it reads.
        cursor: Id of the last entry that it has.
    """

    __slots__ = (
        "_generation",
        "_hub",
        "_over",
        "beat",
        "cursor",
        "dropped",
        "feed",
        "heard_at",
        "news",
        "sending_since",
        "source",
        "task",
    )

    def __init__(self, hub: Hub, source: Source, cursor: str) -> None:
        self._hub = hub
        self.source = source
        self.cursor = cursor
        self.news = asyncio.Event()
        self.feed: Feed | None = None
        self._generation: int = 0
        self._over = False
        self.beat = False
        """A heartbeat is due."""
        self.heard_at = 0.0
        """Loop time of the last thing sent."""
        self.sending_since: float | None = None
        self.task: asyncio.Task[Any] | None = None
        """Cancelled when the other side takes nothing for too long; `dropped` says so."""
        self.dropped = False

    async def next(self) -> Piece | None:
        """What comes after the cursor; waits for it. None if it was woken for something else.

        Raises:
            RedisAwayError: Redis is away and what is asked for is not kept here.
        """
        if self._hub.closed:
            return Piece(b"", self.cursor, over=True)
        piece = await self._take()
        if piece is not None:
            return piece
        await self.news.wait()
        return await self._take()

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
        entries, valid, over = await self._hub.read(self.source, self.cursor)
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
        if not self._over and len(entries) < _PAGE_COUNT and self.feed is None:
            feed = self.feed = self._hub.join(self)
            self._generation = feed.generation
        if not pieces and self.feed is not None and not self.news.is_set():
            return None
        return Piece(b"".join(pieces), self.cursor, over=self._over)

    def close(self) -> None:
        """Leave. Idempotent."""
        if self.feed is not None:
            self._hub.leave(self)
            self.feed = None


class Hub:
    """All feeds of one relay.

    Args:
        client: Redis.
        heartbeat_s: A client is woken to send a heartbeat after so long without anything sent.
        send_timeout_s: A client that takes nothing for so long is dropped.
    """

    def __init__(self, client: Redis, *, heartbeat_s: float = 15, send_timeout_s: float = 20) -> None:
        self._redis = client
        self._heartbeat_s = heartbeat_s
        self._send_timeout_s = send_timeout_s
        self._feeds: dict[str, Feed] = {}
        self._by_channel: dict[str, set[Feed]] = {}
        self._dirty: set[Feed] = set()
        self._news = asyncio.Event()
        self._subscriptions: set[str] = set()
        self._subscribed = asyncio.Event()
        self._clients = 0
        self.closed = False
        self.dropped = 0
        """Clients that took nothing for too long."""

    @property
    def client_count(self) -> int:
        """Clients now."""
        return self._clients

    @property
    def feed_count(self) -> int:
        """Streams read now."""
        return len(self._feeds)

    def client(self, source: Source, cursor: str) -> Client:
        """A reader of `source` from after `cursor`. Close it."""
        return Client(self, source, cursor)

    def join(self, client: Client) -> Feed:
        """Feed `client` from now on."""
        source = client.source
        feed = self._feeds.get(source.name)
        if feed is None:
            feed = self._feeds[source.name] = Feed(source, client.cursor)
            self._by_channel.setdefault(source.channel, set()).add(feed)
            self._subscribed.set()
        feed.clients.add(client)
        self._clients += 1
        self._mark(feed)
        return feed

    def leave(self, client: Client) -> None:
        """Feed `client` no more."""
        feed = client.feed
        if feed is None or client not in feed.clients:
            return
        feed.clients.discard(client)
        self._clients -= 1
        if not feed.clients:
            del self._feeds[feed.source.name]
            siblings = self._by_channel[feed.source.channel]
            siblings.discard(feed)
            if not siblings:
                del self._by_channel[feed.source.channel]
            self._dirty.discard(feed)
            self._subscribed.set()

    def close(self) -> None:
        """Send all clients away; each can resume elsewhere."""
        self.closed = True
        for feed in self._feeds.values():
            feed.wake()

    async def read(self, source: Source, cursor: str) -> tuple[list[RawEntry], bool, bool]:
        """A page of entries after `cursor`; whether `cursor` is an entry of the stream; whether its last.

        Raises:
            RedisAwayError: Redis does not answer.
        """
        try:
            answer = await cast("Any", self._redis).xrange(
                source.key, min=cursor, max="+", count=_PAGE_COUNT + 1
            )
            return _checked(cursor, answer)
        except (redis.RedisError, OSError) as error:
            if is_redis_away(error):
                raise RedisAwayError(f"Redis does not answer: {error}") from error
            raise

    async def run(self) -> None:
        """Read for all feeds until cancelled. Trouble with Redis is logged and outlived."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._read_feeds(), name="hub-read")
            tasks.create_task(self._listen(), name="hub-listen")
            tasks.create_task(self._poll(), name="hub-poll")
            tasks.create_task(self._tick(), name="hub-tick")

    # Inside ---------------------------------------------------------------------------------------

    def _mark(self, feed: Feed) -> None:
        self._dirty.add(feed)
        self._news.set()

    async def _read_feeds(self) -> None:
        attempt = 0
        while True:
            await self._news.wait()
            self._news.clear()
            feeds, self._dirty = list(self._dirty), set()
            try:
                for begin in range(0, len(feeds), _PIPELINE_COUNT):
                    await self._read_some(feeds[begin : begin + _PIPELINE_COUNT])
                attempt = 0
            except (redis.RedisError, OSError) as error:
                _log.warning("streams_unreadable", extra={"error": repr(error), "attempt": attempt})
                self._dirty.update(feed for feed in feeds if feed.clients)
                self._news.set()
                await asyncio.sleep(_BACKOFF_S[min(attempt, len(_BACKOFF_S) - 1)])
                attempt += 1
            await asyncio.sleep(_WAVE_S)

    async def _read_some(self, feeds: list[Feed]) -> None:
        pipeline = cast("Any", self._redis).pipeline(transaction=False)
        for feed in feeds:
            pipeline.xrange(feed.source.key, min=feed.last, max="+", count=_PAGE_COUNT + 1)
        cursors = [feed.last for feed in feeds]
        answers: list[Any] = await pipeline.execute(raise_on_error=False)
        for feed, cursor, answer in zip(feeds, cursors, answers, strict=True):
            if isinstance(answer, Exception):
                if is_redis_away(answer):
                    raise answer
                _log.error("stream_unreadable", extra={"key": feed.source.key, "error": repr(answer)})
                continue
            entries, valid, _ = _checked(cursor, answer)
            if not valid:
                feed.restart()
                self._mark(feed)
            elif entries:
                feed.extend(entries)
                if len(entries) >= _PAGE_COUNT:
                    self._mark(feed)
            else:
                continue
            feed.wake()

    async def _listen(self) -> None:
        """Keep one pub/sub connection subscribed to the feeds' channels."""
        attempt = 0
        while True:
            pubsub = cast("Any", self._redis).pubsub(ignore_subscribe_messages=True)
            self._subscriptions.clear()
            try:
                await pubsub.subscribe(_IDLE_CHANNEL)
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(self._keep_subscribed(pubsub), name="hub-subscribe")
                    tasks.create_task(self._hear(pubsub), name="hub-hear")
            except* (redis.RedisError, OSError) as errors:
                _log.warning("wake_ups_lost", extra={"error": repr(errors.exceptions), "attempt": attempt})
            finally:
                await pubsub.aclose()
            await asyncio.sleep(_BACKOFF_S[min(attempt, len(_BACKOFF_S) - 1)])
            attempt = min(attempt + 1, 10)

    async def _hear(self, pubsub: Any) -> None:
        while True:
            message = await pubsub.get_message(timeout=None)
            if message is not None:
                for feed in self._by_channel.get(message["channel"], ()):
                    self._mark(feed)

    async def _keep_subscribed(self, pubsub: Any) -> None:
        self._subscribed.set()
        while True:
            await self._subscribed.wait()
            self._subscribed.clear()
            wanted = set(self._by_channel)
            if gone := self._subscriptions - wanted:
                await pubsub.unsubscribe(*gone)
            if new := wanted - self._subscriptions:
                await pubsub.subscribe(*new)
            self._subscriptions = wanted
            # What was published before the subscription is found by reading once more.
            for channel in new:
                for feed in self._by_channel.get(channel, ()):
                    self._mark(feed)

    async def _poll(self) -> None:
        """A message that pub/sub lost costs this much delay."""
        while True:
            await asyncio.sleep(_POLL_S)
            for feed in self._feeds.values():
                self._mark(feed)

    async def _tick(self) -> None:
        """Heartbeats and slow clients: one timer for all, rather than one or two for each event sent."""
        loop = asyncio.get_running_loop()
        tick_s = min(self._heartbeat_s, self._send_timeout_s, 4.0) / 4
        while True:
            await asyncio.sleep(tick_s)
            now = loop.time()
            for feed in self._feeds.values():
                for client in feed.clients:
                    self._look_after(client, now)

    def _look_after(self, client: Client, now: float) -> None:
        if client.sending_since is not None:
            if now - client.sending_since > self._send_timeout_s and client.task is not None:
                if not client.dropped:
                    self.dropped += 1
                client.dropped = True
                client.task.cancel()
        elif now - client.heard_at > self._heartbeat_s:
            client.beat = True
            client.news.set()


def _checked(cursor: str, entries: list[RawEntry]) -> tuple[list[RawEntry], bool, bool]:
    if cursor == sse.START_ID:
        return entries[:_PAGE_COUNT], True, False
    if entries and entries[0][0] == cursor:
        over = len(entries) == 1 and entries[0][1].get(TYPE_FIELD) in TERMINAL_ENTRY_TYPES
        return entries[1:], True, over
    return [], False, False
