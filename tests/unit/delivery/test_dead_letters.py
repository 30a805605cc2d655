"""Dead letters, replay and marks as records, without Kafka."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.delivery.records import record

from towline.delivery import DeadLetter
from towline.delivery.dead_letters import Origin, dead_letter_headers
from towline.delivery.letters import (
    LetterError,
    Letters,
    mark_record,
    parse_origin,
    replay_record,
)

NOW = datetime(2030, 1, 2, tzinfo=UTC)
HEADERS = (("ce_id", b"e-1"), ("ce_type", b"t.v1"), ("x", b"\xff\x00"), ("x", b"twice"))


def as_letter(original, reason="invalid_json", error="why"):
    """The record that stands in the dead letters' topic."""
    headers = dead_letter_headers(original, DeadLetter(reason, error), now=NOW)
    return record(0, topic="dead", key=original.key, value=original.value, headers=headers)


def letters(*records):
    found = Letters()
    for one in records:
        found.add(one)
    return found


@given(
    key=st.none() | st.binary(max_size=20),
    value=st.none() | st.binary(max_size=50),
    headers=st.lists(st.tuples(st.text(max_size=10), st.binary(max_size=10)), max_size=4),
)
def test_a_dead_letter_replayed_is_the_record_it_was(key, value, headers):
    headers = tuple((n, v) for n, v in headers if not n.startswith("towline_"))
    original = record(7, key=key, value=value, headers=headers)
    (letter,) = letters(as_letter(original)).select()
    again = replay_record(letter, replays_max_count=3)
    assert (again.key, again.value) == (key, value)
    assert again.headers == (*headers, ("towline_replay_of", b"t.runs/0/7"), ("towline_replay_count", b"1"))


def test_a_letter_tells_reason_error_and_origin():
    (letter,) = letters(as_letter(record(7, partition=2, headers=HEADERS), error="x" * 9000)).select()
    assert letter.origin == Origin("t.runs", 2, 7)
    assert (letter.reason, len(letter.error), letter.time) == ("invalid_json", 2000, NOW.isoformat())
    assert letter.record.headers == HEADERS


def test_a_letter_written_twice_is_one_letter():
    one = as_letter(record(7))
    assert len(letters(one, one, as_letter(record(8))).select()) == 2


def test_a_letter_is_open_until_it_is_marked():
    found = letters(as_letter(record(7)), as_letter(record(8)))
    first, second = found.select()
    for letter, state in ((first, "replayed"), (second, "discarded")):
        mark = mark_record(letter, state, "note é")
        found.add(record(9, topic="dead", key=mark.key, value=mark.value, headers=mark.headers))
    assert found.select() == []
    assert [letter.state for letter in found.select(states=("replayed", "discarded"))] == [
        "replayed",
        "discarded",
    ]
    assert found.find("t.runs/0/7").note == "note é"


def test_a_letter_of_a_topic_that_was_made_anew_is_open_though_an_earlier_one_of_its_origin_is_marked():
    found = letters(as_letter(record(7, value=b"old")))
    mark = mark_record(found.find("t.runs/0/7"), "discarded")
    found.add(record(9, topic="dead", key=mark.key, value=mark.value, headers=mark.headers))
    found.add(as_letter(record(7, value=b"old")))
    assert found.select() == [], "written twice"
    found.add(as_letter(record(7, value=b"new")))
    assert [letter.record.value for letter in found.select()] == [b"new"]


@pytest.mark.parametrize(("partition", "state"), [(1, "replayed"), (0, "open")])
def test_a_mark_counts_before_its_letter_if_it_is_in_another_partition(partition, state):
    letter = as_letter(record(7))
    mark = mark_record(letters(letter).find("t.runs/0/7"), "replayed")
    early = record(9, topic="dead", partition=partition, key=mark.key, value=mark.value, headers=mark.headers)
    assert letters(early, letter).find("t.runs/0/7").state == state


def test_a_record_that_comes_back_again_and_again_is_not_replayed_without_end():
    original = record(7)
    for round_number in range(3):
        (letter,) = letters(as_letter(original)).select()
        assert letter.replay_count == round_number
        again = replay_record(letter, replays_max_count=3)
        original = record(8 + round_number, key=again.key, value=again.value, headers=again.headers)
    (letter,) = letters(as_letter(original)).select()
    with pytest.raises(LetterError, match=r"t\.runs/0/10: was replayed 3 times"):
        replay_record(letter, replays_max_count=3)


def test_filters_are_patterns_on_fields_and_all_must_fit():
    found = letters(
        as_letter(record(1, key=b"r-1", headers=HEADERS)),
        as_letter(record(2, key=b"r-2"), reason="unknown_type"),
        as_letter(record(3, key=b"x-1")),
    )
    assert [x.origin.offset for x in found.select(["run=r-*"])] == [1, 2]
    assert [x.origin.offset for x in found.select(["run=r-*", "reason=invalid_json"])] == [1]
    assert [x.origin.offset for x in found.select(["event=e-1"])] == [1]
    with pytest.raises(LetterError, match="give FIELD=PATTERN"):
        found.select(["colour=red"])


@pytest.mark.parametrize("text", ["", "t", "t/1", "t/1/x", "/1/2", "t/-1/2"])
def test_what_is_no_origin_is_refused(text):
    assert parse_origin(text) is None
    with pytest.raises(LetterError, match="give TOPIC/PARTITION/OFFSET"):
        letters().find(text)


def test_records_that_are_neither_letter_nor_mark_are_counted():
    assert letters(record(1)).unreadable_count == 1


@pytest.mark.parametrize("count", ["\u00b2", "9" * 5_000, "-1", "", "one"])
def test_a_count_of_replays_that_is_no_number_spoils_no_list(count):
    original = record(7, headers=(("towline_replay_count", count.encode()),))
    (letter,) = letters(as_letter(original)).select()
    assert letter.summary()["replays"] == 0
    assert replay_record(letter, replays_max_count=3).headers[-1] == ("towline_replay_count", b"1")


def test_an_origin_of_endless_digits_is_none():
    headers = [("towline_dead_letter_topic", b"t"), ("towline_dead_letter_partition", b"0")]
    found = letters(record(0, headers=(*headers, ("towline_dead_letter_offset", b"9" * 5_000))))
    assert found.unreadable_count == 1


@pytest.mark.parametrize("mode", ["binary", "names in capitals", "structured"])
def test_a_letter_is_found_by_what_its_event_says_in_either_mode(mode: str) -> None:
    told = {"id": "e-1", "source": "shop", "type": "towline.run.requested.v1", "subject": "order-1"}
    headers = tuple((f"ce_{name}", text.encode()) for name, text in told.items())
    value = b"{}"
    if mode == "names in capitals":
        headers = tuple((name.upper(), text) for name, text in headers)
    if mode == "structured":
        headers = (("Content-Type", b"application/cloudevents+json; charset=utf-8"),)
        value = json.dumps({**told, "specversion": "1.0", "data": {}}).encode()
    found = letters(as_letter(record(1, key=None, value=value, headers=headers)))
    wanted = ["type=towline.run.*", "event=e-1", "source=shop", "run=order-*"]
    assert [letter.origin.offset for letter in found.select(wanted)] == [1]
