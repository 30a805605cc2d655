"""News that go to waiting clients at once, and those that cannot."""

from __future__ import annotations

import asyncio
import json
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from towline.relay import sse
from towline.relay.feed import Feed, News, Source, parse_news
from towline.relay.hub import Hub
from towline.relay.reader import Client

SOURCE = Source("key", "channel")


def entry(number: int, kind: str = "token") -> tuple[str, dict[str, str]]:
    return f"{number}-0", {"type": kind, "data": json.dumps({"number": number})}


def body(*numbers: int) -> bytes:
    return b"".join(SOURCE.encode(*entry(number)) for number in numbers)


class Connection:
    """Takes chunks while it is open."""

    def __init__(self) -> None:
        self.got: list[bytes] = []
        self.open = True

    def __call__(self, chunk: bytes) -> bool:
        if self.open:
            self.got.append(chunk)
        return self.open


class Pair:
    """A feed at entry 1 and a client at its end; no Redis is asked."""

    def __init__(self) -> None:
        self.feed = Feed(SOURCE, "1-0")
        self.connection = Connection()
        self.client = Client(cast("Hub", cast("Any", type("Open", (), {"closed": False})())), SOURCE, "1-0")
        self.client.feed = self.feed
        self.client.direct = self.connection
        self.feed.clients.add(self.client)

    async def waiting(self) -> asyncio.Task[Any]:
        task = asyncio.ensure_future(self.client.next())
        await asyncio.sleep(0)
        return task


@given(
    st.lists(st.tuples(st.sampled_from(["token", "end"]), st.text().map(json.dumps)), min_size=1, max_size=5)
)
def test_news_are_read_as_they_are_told(said: list[tuple[str, str]]) -> None:
    lines = ["5-1"]
    for number, (kind, data) in enumerate(said):
        lines += [f"6-{number}", kind, data]
    entries = [(f"6-{n}", {"type": kind, "data": data}) for n, (kind, data) in enumerate(said)]
    assert parse_news("\n".join(lines)) == News("5-1", entries)


@pytest.mark.parametrize("message", ["", "6-0", "5-1\n6-0", "5-1\n6-0\ntoken"])
def test_a_message_without_whole_entries_says_only_that_there_is_more(message: str) -> None:
    assert parse_news(message) is None


async def test_a_waiting_client_gets_news_without_being_woken() -> None:
    pair = Pair()
    task = await pair.waiting()
    pair.feed.take([entry(2)], now=7.0)
    pair.feed.take([entry(3), entry(4)], now=8.0)
    await asyncio.sleep(0)
    assert not task.done()
    assert pair.connection.got == [sse.chunk(body(2)), sse.chunk(body(3, 4))]
    assert (pair.client.cursor, pair.client.heard_at) == ("4-0", 8.0)
    task.cancel()


async def test_after_a_chunk_that_was_not_taken_the_client_goes_on_from_its_place() -> None:
    pair = Pair()
    task = await pair.waiting()
    pair.feed.take([entry(2)], now=0)
    pair.connection.open = False
    pair.feed.take([entry(3)], now=0)
    pair.connection.open = True
    # It has been woken and has something to send: nothing may overtake that.
    pair.feed.take([entry(4)], now=0)
    piece = await task
    assert pair.connection.got == [sse.chunk(body(2))]
    assert (piece.body, piece.cursor) == (body(3, 4), "4-0")


async def test_a_client_that_does_not_wait_is_not_written_to() -> None:
    pair = Pair()
    pair.feed.take([entry(2)], now=0)
    assert pair.connection.got == []
    piece = await pair.client.next()
    assert piece is not None
    assert piece.body == body(2)


async def test_a_client_that_is_elsewhere_looks_itself() -> None:
    pair = Pair()
    pair.feed.extend([entry(2)])
    pair.client.cursor = "2-0"
    task = await pair.waiting()
    pair.client.cursor = "1-0"
    pair.feed.take([entry(3)], now=0)
    piece = await task
    assert pair.connection.got == []
    assert piece.body == body(2, 3)


async def test_the_end_is_sent_and_wakes_the_client_to_leave() -> None:
    pair = Pair()
    task = await pair.waiting()
    pair.feed.take([entry(2), entry(3, "end")], now=0)
    piece = await task
    assert pair.connection.got == [sse.chunk(SOURCE.encode(*entry(2)) + SOURCE.encode(*entry(3, "end")))]
    assert (piece.body, piece.over) == (b"", True)


async def test_nothing_is_sent_after_the_callers_credentials_have_ended() -> None:
    pair = Pair()
    pair.client.ends_at = 1.0
    task = await pair.waiting()
    pair.feed.take([entry(2)], now=0)
    assert pair.connection.got == []
    task.cancel()


async def test_a_reset_comes_before_what_follows_it() -> None:
    pair = Pair()
    task = await pair.waiting()
    pair.feed.restart()
    pair.feed.take([entry(1), entry(2)], now=0)
    first = await task
    second = await pair.client.next()
    assert second is not None
    assert pair.connection.got == []
    assert (first.body, second.body) == (sse.reset("lost"), body(1, 2))


async def test_filtered_news_move_the_client_on_without_a_byte() -> None:
    pair = Pair()
    pair.feed.source = Source("key", "channel", lambda _id, _fields: b"")
    task = await pair.waiting()
    pair.feed.take([entry(2)], now=0)
    assert pair.connection.got == []
    assert pair.client.cursor == "2-0"
    assert not pair.client.news.is_set()
    task.cancel()


def test_what_came_by_news_is_not_taken_again_from_a_read() -> None:
    feed = Feed(SOURCE, "1-0")
    feed.extend([entry(2), entry(3)])
    assert feed.newer([entry(2), entry(3), entry(4)]) == [entry(4)]
