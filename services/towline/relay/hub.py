"""One reader of each run's stream for all of its clients.

News come over one pub/sub connection, with the entries themselves: a feed whose newest entry is the one
before them takes them from there. Any other has something to catch up with: one loop reads all of those in
one pipeline; and a slow poll makes up for messages that pub/sub lost. A client is a position, not a buffer:
one that falls behind the feed's entries catches up from Redis by itself.

Each read begins at the last entry it knows. If that entry is gone (trimmed, or lost by Redis), nothing can be
said about what comes between: the reader gets `reset` and the stream from its beginning.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Final, cast

import redis
from redis.asyncio import Redis

from towline.contracts.redis_errors import is_redis_away, redis_problem
from towline.contracts.stream import TERMINAL_ENTRY_TYPES, TYPE_FIELD
from towline.relay import sse
from towline.relay.errors import RedisAwayError
from towline.relay.feed import PAGE_COUNT, Delivery, Feed, RawEntry, Source, parse_news
from towline.relay.pubsub import arrived, by_channel
from towline.relay.reader import Client
from towline.relay.redis_client import Script

_log = logging.getLogger(__name__)

_POLL_S: Final = 2.0
_WAVE_S: Final = 0.02
"""Shortest time between two reads: what comes in between shares a read and a write."""
_WAVE_MAX_S: Final = 0.25
_WAVE_CLIENT_S: Final = 60e-6
"""A wave lasts so long for each client of the largest stream that is in it: about four times what a write
costs. So one stream takes a part of a core only: what comes faster shares writes, before the relay falls
behind with it. Up to 333 clients of one stream do not make a wave longer."""
_PAGE_CHARS: Final = 1_000_000
"""Of what a client catches up with, so much is in memory at once, and an entry more: outputs may be large."""
_PIPELINE_COUNT: Final = 200
_HEAR_COUNT: Final = 64
"""Messages taken before others get their turn."""
_BACKOFF_S: Final = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0)


class Hub:
    """All feeds of one relay.

    Args:
        client: Redis.
        idle_channel: Never published to, see `Keys.idle_channel`.
        heartbeat_s: A client is woken to send a heartbeat after so long without anything sent.
        send_timeout_s: A client that takes nothing for so long is dropped.
    """

    def __init__(
        self, client: Redis, *, idle_channel: str, heartbeat_s: float = 15, send_timeout_s: float = 20
    ) -> None:
        self._redis = client
        self._page = Script("page")
        self._idle_channel = idle_channel
        self._heartbeat_s = heartbeat_s
        self._send_timeout_s = send_timeout_s
        self._feeds: dict[str, Feed] = {}
        self._by_channel: dict[str, set[Feed]] = {}
        self._dirty: set[Feed] = set()
        self._news = asyncio.Event()
        self._subscriptions: set[str] = set()
        self._subscribed = asyncio.Event()
        self._clients: set[Client] = set()
        self.closed = False
        self.dropped = 0
        """Clients that took nothing for too long."""

    @property
    def client_count(self) -> int:
        """Clients now."""
        return len(self._clients)

    @property
    def feed_count(self) -> int:
        """Streams read now."""
        return len(self._feeds)

    def client(self, source: Source, cursor: str) -> Client:
        """A reader of `source` from after `cursor`. Close it."""
        client = Client(self, source, cursor)
        self._clients.add(client)
        return client

    def join(self, client: Client) -> Feed:
        """Feed `client` from now on."""
        source = client.source
        feed = self._feeds.get(source.name)
        if feed is None:
            feed = self._feeds[source.name] = Feed(source, client.cursor)
            self._by_channel.setdefault(source.channel, set()).add(feed)
            # It is read once more when its channel is subscribed to: see `_keep_subscribed`.
            self._subscribed.set()
        feed.clients.add(client)
        return feed

    def leave(self, client: Client) -> None:
        """`client` is gone."""
        self._clients.discard(client)
        feed = client.feed
        if feed is None or client not in feed.clients:
            return
        feed.clients.discard(client)
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

    async def read(self, source: Source, cursor: str) -> tuple[list[RawEntry], bool, bool, bool]:
        """A page of entries after `cursor`; whether there are more; whether `cursor` is one; and the last.

        Raises:
            RedisAwayError: Redis does not answer.
        """
        try:
            arguments = [cursor, PAGE_COUNT + 1, _PAGE_CHARS]
            raw, more = await self._page.call(self._redis, [source.key], arguments)
        except (redis.RedisError, OSError) as error:
            if is_redis_away(error):
                raise RedisAwayError(redis_problem(error)) from error
            raise
        answer = [(entry_id, dict(zip(fields[::2], fields[1::2], strict=True))) for entry_id, fields in raw]
        entries, valid, over = _checked(cursor, answer)
        return entries, more == 1 or len(answer) > PAGE_COUNT, valid, over

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
            await asyncio.sleep(wave_s(max((len(feed.clients) for feed in feeds), default=0)))

    async def _read_some(self, feeds: list[Feed]) -> None:
        pipeline = cast("Any", self._redis).pipeline(transaction=False)
        for feed in feeds:
            pipeline.xrange(feed.source.key, min=feed.last, max="+", count=PAGE_COUNT + 1)
        cursors = [feed.last for feed in feeds]
        loop = asyncio.get_running_loop()
        answers: list[Any] = await pipeline.execute(raise_on_error=False)
        for feed, cursor, answer in zip(feeds, cursors, answers, strict=True):
            if isinstance(answer, Exception):
                if is_redis_away(answer):
                    raise answer
                _log.error("stream_unreadable", extra={"key": feed.source.key, "error": repr(answer)})
                continue
            entries, valid, _ = _checked(cursor, answer)
            if not valid and feed.last == cursor:
                feed.restart()
                self._mark(feed)
                feed.wake()
                continue
            # What came by pub/sub meanwhile is in the answer too.
            if len(entries) >= PAGE_COUNT or not valid:
                self._mark(feed)
            if new := feed.newer(entries):
                feed.take(new, now=loop.time())

    async def _listen(self) -> None:
        """Keep one pub/sub connection subscribed to the feeds' channels."""
        attempt = 0
        while True:
            pubsub = cast("Any", self._redis).pubsub(ignore_subscribe_messages=True)
            self._subscriptions.clear()
            try:
                await pubsub.subscribe(self._idle_channel)
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
        loop = asyncio.get_running_loop()
        while True:
            groups = by_channel(await arrived(pubsub))
            began, most = loop.time(), 0
            for begin in range(0, len(groups), _HEAR_COUNT):
                # All is read before anything is written: code and data of neither drive the other's out of
                # the processor's caches for each event.
                deliveries: list[Delivery] = []
                for channel, messages in groups[begin : begin + _HEAR_COUNT]:
                    deliveries += self._take_news(channel, messages)
                now = loop.time()
                for delivery in deliveries:
                    delivery.send(now)
                    most = max(most, len(delivery.feed.clients))
                await asyncio.sleep(0)
            # What comes in between is one wave: longer ones cost less an event and delay it more.
            await asyncio.sleep(began + wave_s(most) - loop.time())

    def _take_news(self, channel: str, messages: list[str]) -> list[Delivery]:
        deliveries: list[Delivery] = []
        if feeds := self._by_channel.get(channel):
            told = [parse_news(message) for message in messages]
            for feed in feeds:
                feed.heard = True
                whole, delivery = feed.hear(told)
                if not whole:
                    self._mark(feed)
                if delivery is not None:
                    deliveries.append(delivery)
        return deliveries

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
            # Clients that come or leave together share a command.
            await asyncio.sleep(_WAVE_S)

    async def _poll(self) -> None:
        """A message that pub/sub lost costs this much delay."""
        while True:
            await asyncio.sleep(_POLL_S)
            for feed in self._feeds.values():
                # Whatever was lost before the news that came, they showed it.
                if not feed.heard:
                    self._mark(feed)
                feed.heard = False

    async def _tick(self) -> None:
        """Heartbeats and slow clients: one timer for all, rather than one or two for each event sent."""
        loop = asyncio.get_running_loop()
        tick_s = min(self._heartbeat_s, self._send_timeout_s) / 8
        while True:
            await asyncio.sleep(tick_s)
            now = loop.time()
            # Those too that are fed by nobody: they read what is over, or have not caught up.
            for client in self._clients:
                self._look_after(client, now)

    def _look_after(self, client: Client, now: float) -> None:
        if client.sending_since is not None:
            left, client.left = client.left, 0 if client.unsent is None else client.unsent()
            if client.left < left:
                client.sending_since = now
            if now - client.sending_since > self._send_timeout_s and client.task is not None:
                if not client.dropped:
                    self.dropped += 1
                client.dropped = True
                client.task.cancel()
        elif now - client.heard_at > self._heartbeat_s:
            client.beat = True
            client.news.set()


def wave_s(clients: int) -> float:
    """How long a wave lasts from its beginning, if `clients` is the most that one stream in it has."""
    return min(max(_WAVE_S, _WAVE_CLIENT_S * clients), _WAVE_MAX_S)


def _checked(cursor: str, entries: list[RawEntry]) -> tuple[list[RawEntry], bool, bool]:
    if cursor == sse.START_ID:
        return entries[:PAGE_COUNT], True, False
    if entries and entries[0][0] == cursor:
        over = len(entries) == 1 and entries[0][1].get(TYPE_FIELD) in TERMINAL_ENTRY_TYPES
        return entries[1:], True, over
    return [], False, False
