"""News that go to waiting clients at once, and those that cannot."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from towline.relay import sse
from towline.relay.feed import Feed, News, Source, parse_news
from towline.relay.hub import Hub, wave_s
from towline.relay.pubsub import by_channel
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


async def test_the_end_is_left_to_the_client_which_ends_its_response_with_it() -> None:
    pair = Pair()
    task = await pair.waiting()
    pair.feed.take([entry(2), entry(3, "end")], now=0)
    piece = await task
    assert pair.connection.got == []
    assert (piece.body, piece.over) == (SOURCE.encode(*entry(2)) + SOURCE.encode(*entry(3, "end")), True)


async def test_what_was_told_in_one_wave_is_one_write_and_a_gap_in_it_shows() -> None:
    pair = Pair()
    task = await pair.waiting()
    assert hear(pair.feed, [News("1-0", [entry(2)]), News("2-0", [entry(3), entry(4)])])
    assert pair.connection.got == [sse.chunk(body(2, 3, 4))]
    # 5 was never told: 6 does not follow, and what follows 6 does not either.
    assert not hear(pair.feed, [News("5-0", [entry(6)]), News("6-0", [entry(7)])])
    assert not hear(pair.feed, [None])
    # Told once more, what is here already is not sent again, and does not hide what follows it.
    assert not hear(pair.feed, [News("3-0", [entry(4)]), News("4-0", [entry(5)])])
    assert pair.connection.got[1:] == [sse.chunk(body(5))]
    assert (pair.client.cursor, pair.feed.last) == ("5-0", "5-0")
    task.cancel()


@given(st.data())
async def test_any_split_into_messages_and_waves_gives_all_clients_the_same_bytes(
    data: st.DataObject,
) -> None:
    """The waiting client is written to; the late one looks by itself. A message may be lost on its way."""
    count = data.draw(st.integers(1, 25))
    ends = data.draw(st.booleans())
    entries = [entry(number) for number in range(2, 2 + count)]
    if ends:
        entries[-1] = entry(count + 1, "end")
    whole = b"".join(SOURCE.encode(*each) for each in entries)
    pair, late = Pair(), b""
    late_cursor, stream = "1-0", [entry(1), *entries]
    task = await pair.waiting()
    at = 0
    while at < count:
        told: list[News | None] = []
        for _ in range(data.draw(st.integers(1, 4))):
            some = entries[at : at + data.draw(st.integers(1, 4))]
            if some and not data.draw(st.sampled_from([False, False, False, True])):
                bare = data.draw(st.sampled_from([False, False, True]))
                told.append(None if bare else News(stream[at][0], some))
            at += len(some)
        if not hear(pair.feed, told):
            # What the hub does of a feed that has something to catch up with.
            pair.feed.take(pair.feed.newer(stream[: at + 1]), now=0)
        if data.draw(st.booleans()):
            kept = pair.feed.after(late_cursor)
            assert kept is not None
            late, late_cursor = late + kept[0], kept[1]
        if task.done():
            break
    if not pair.feed.ended:
        pair.feed.take(pair.feed.newer(stream), now=0)
    kept = pair.feed.after(late_cursor)
    assert kept is not None
    assert late + kept[0] == whole
    got = b"".join(pair.connection.got)
    if ends:
        piece = await task
        assert piece.over
        assert b"".join(_unchunked(got)) + piece.body == whole
    else:
        assert b"".join(_unchunked(got)) == whole
        task.cancel()


def hear(feed: Feed, told: list[News | None]) -> bool:
    """What the hub does with what was told of a stream; whether that is all that there is."""
    whole, delivery = feed.hear(told)
    if delivery is not None:
        delivery.send(0)
    return whole


def _unchunked(chunks: bytes) -> Iterator[bytes]:
    while chunks:
        size, _, rest = chunks.partition(b"\r\n")
        end = int(size, 16)
        yield rest[:end]
        assert rest[end : end + 2] == b"\r\n"
        chunks = rest[end + 2 :]


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


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["", "x", "ü" * 30_000, "y" * 70_000]))))
def test_messages_are_grouped_by_channel_in_order_and_in_bounds(messages: list[tuple[str, str]]) -> None:
    groups = by_channel(messages)
    for channel in "abc":
        told = [text for name, texts in groups if name == channel for text in texts]
        assert told == [text for name, text in messages if name == channel]
    assert all(len(texts) == 1 or sum(map(len, texts)) <= 65_536 for _, texts in groups)
    assert all(texts for _, texts in groups)


def test_a_wave_is_longer_for_a_stream_of_many_clients_within_bounds() -> None:
    assert [wave_s(clients) for clients in (0, 1, 333, 1_000, 5_000, 100_000)] == [
        0.02,
        0.02,
        0.02,
        pytest.approx(0.06),  # pyright: ignore[reportUnknownMemberType]
        0.25,
        0.25,
    ]
