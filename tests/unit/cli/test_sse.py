"""The event stream reader."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from towline.cli.sse import Message, Parser


def parse(text: str) -> list[Message]:
    parser = Parser()
    return [message for line in text.split("\n") if (message := parser.feed(line)) is not None]


def test_fields_make_a_message_at_the_empty_line() -> None:
    assert parse('id: 1-0\nevent: token\ndata: {"a": 1}\n\n') == [Message("token", '{"a": 1}', "1-0")]


def test_data_lines_are_joined_and_comments_and_unknown_fields_ignored() -> None:
    assert parse(": heartbeat\n\nretry: 10\ndata: a\ndata:b\n\n") == [Message("message", "a\nb", "")]


def test_the_last_id_stays_for_later_messages() -> None:
    assert [message.id for message in parse("id: 7\ndata: a\n\ndata: b\n\n")] == ["7", "7"]


def test_an_id_without_data_moves_the_position_but_is_no_message() -> None:
    parser = Parser()
    assert [parser.feed(line) for line in ("id: 9", "")] == [None, None]
    assert parser.last_id == "9"


@given(
    st.lists(
        st.tuples(st.from_regex(r"[a-z_]{1,10}", fullmatch=True), st.text("abc \u00e4{}:"), st.integers(1))
    )
)
def test_what_is_written_is_read(messages: list[tuple[str, str, int]]) -> None:
    text = "".join(f"id: {number}-0\nevent: {event}\ndata: {data}\n\n" for event, data, number in messages)
    assert parse(text) == [Message(event, data, f"{number}-0") for event, data, number in messages]


@given(st.text())
def test_no_text_breaks_it(text: str) -> None:
    parse(text)
