"""One feed for all clients: a client is a position."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from towline.relay import sse
from towline.relay.feed import Feed, Source

SOURCE = Source("key", "channel")


def entry(number: int, kind: str = "token") -> tuple[str, dict[str, str]]:
    return f"{number}-0", {"type": kind, "data": json.dumps({"number": number})}


def body(*numbers: int) -> bytes:
    return b"".join(SOURCE.encode(*entry(number)) for number in numbers)


def test_every_position_gets_what_comes_after_it() -> None:
    feed = Feed(SOURCE, "5-0")
    feed.extend([entry(6), entry(8)])
    assert feed.after("5-0") == (body(6, 8), "8-0")
    assert feed.after("6-0") == (body(8), "8-0")
    assert feed.after("7-0") == (body(8), "8-0")
    assert feed.after("8-0") == (b"", "8-0")
    assert feed.after("9-0") == (b"", "9-0")
    assert feed.after("4-9") is None


def test_ids_are_compared_as_numbers() -> None:
    feed = Feed(SOURCE, "9-9")
    feed.extend([("10-0", entry(10)[1])])
    assert feed.after("9-10") == (sse.encode("10-0", "token", '{"number": 10}'), "10-0")


def test_what_is_kept_is_bounded_and_the_floor_moves() -> None:
    feed = Feed(SOURCE, "0-0")
    feed.extend([entry(number) for number in range(1, 3001)])
    assert len(feed.bodies) == 1000
    assert feed.floor == "2000-0"
    assert feed.after("1999-0") is None
    kept = feed.after("2000-0")
    assert kept is not None
    assert kept[1] == "3000-0"


def test_nothing_comes_after_the_end() -> None:
    feed = Feed(SOURCE, "0-0")
    feed.extend([entry(1), entry(2, "end"), entry(3)])
    assert feed.ended
    assert feed.last == "2-0"


def test_a_restart_begins_before_the_first_entry() -> None:
    feed = Feed(SOURCE, "5-0")
    feed.extend([entry(6, "end")])
    feed.restart()
    assert (feed.last, feed.ended, feed.generation) == (sse.START_ID, False, 1)


@given(st.lists(st.integers(1, 400), min_size=1, max_size=60), st.lists(st.integers(1, 5), min_size=1))
def test_reading_in_any_pieces_gives_the_same_bytes(gaps: list[int], pieces: list[int]) -> None:
    numbers = [sum(gaps[: index + 1]) for index in range(len(gaps))]
    feed, cursor, read, left = Feed(SOURCE, "0-0"), "0-0", b"", list(numbers)
    while left:
        take = pieces[len(left) % len(pieces)]
        feed.extend([entry(number) for number in left[:take]])
        left = left[take:]
        if len(left) % 2:
            kept = feed.after(cursor)
            assert kept is not None
            read, cursor = read + kept[0], kept[1]
    kept = feed.after(cursor)
    assert kept is not None
    assert read + kept[0] == body(*numbers)


@pytest.mark.parametrize("value", ["", "1", "1-", "-1", "1-1-1", "a-0", "1-1\n", "0x1-0", "1" * 21 + "-0"])
def test_what_is_no_id_is_no_cursor(value: str) -> None:
    assert not sse.is_cursor(value)


def test_an_event_is_three_lines_and_an_empty_one() -> None:
    assert sse.encode("1-0", "token", "{}") == b"id: 1-0\nevent: token\ndata: {}\n\n"
