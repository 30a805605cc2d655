"""The merged log."""

from __future__ import annotations

import io
import json
import logging

from hypothesis import given
from hypothesis import strategies as st

from towline.dev.console import Console, LogLines, readable


def test_each_line_has_its_part_before_it() -> None:
    stream = io.StringIO()
    Console(stream).line("kafka", "ready")
    assert stream.getvalue() == "kafka     | ready\n"


def test_a_json_line_is_shown_readably_and_its_traceback_labelled() -> None:
    stream = io.StringIO()
    record = {
        "time": "2026-01-02T03:04:05.678+00:00",
        "level": "error",
        "service": "towline-bridge",
        "event": "send_failed",
        "topic": "t",
        "exception": "Traceback\n  line",
    }
    Console(stream).line("bridge", json.dumps(record))
    first, *rest = stream.getvalue().splitlines()
    assert first.endswith('05.678 error   send_failed  topic="t"')
    assert rest == ["bridge    | Traceback", "bridge    |   line"]


def test_json_is_left_alone_when_asked_for() -> None:
    stream = io.StringIO()
    Console(stream, as_json=True).line("bridge", '{"event": "x"}')
    assert stream.getvalue() == 'bridge    | {"event": "x"}\n'


@given(
    st.text() | st.dictionaries(st.text(), st.text()).map(lambda fields: json.dumps({"event": "e", **fields}))
)
def test_nothing_that_is_logged_can_drive_the_terminal(text: str) -> None:
    assert all(character.isprintable() or character in "\t\n" for character in readable(text))


def test_a_reader_that_went_away_stops_nothing() -> None:
    stream = io.StringIO()
    console = Console(stream)
    stream.close()
    console.line("kafka", "one")
    console.say("two")


def test_the_stacks_own_log_records_are_lines_with_their_fields() -> None:
    said: list[str] = []
    record = logging.makeLogRecord({"msg": "kafka.fetching", "levelno": logging.INFO, "version": "4.4.0"})
    LogLines(said.append).handle(record)
    assert said == ["kafka.fetching  version=4.4.0"]
