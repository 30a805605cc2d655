"""How a stream looks on a terminal."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from towline.cli.stream_view import StreamView


def shown(*entries: tuple[str, dict[str, Any]]) -> str:
    view = StreamView("run-1")
    return "".join(view.text(kind, data) for kind, data in entries) + view.end()


def token(
    text: str, agent: str = "Writer", turn: str = "1", offset: int | None = None
) -> tuple[str, dict[str, Any]]:
    at = {} if offset is None else {"offset": offset}
    return "token", {"agent": agent, "turn": turn, "attempt": 1, "text": text, **at}


def test_the_tokens_of_a_turn_are_one_line() -> None:
    message = {"agent": "Writer", "turn": "1", "text": "Hello"}
    assert shown(token("Hel"), token("lo"), ("message", message)) == "Writer> Hello\n"


def test_a_message_without_tokens_is_shown_whole() -> None:
    assert shown(("message", {"agent": "Writer", "turn": "1", "text": "Hello"})) == "Writer> Hello\n"


def test_what_no_token_brought_comes_with_the_message() -> None:
    message = ("message", {"agent": "Writer", "turn": "1", "text": "Hello world"})
    assert shown(token("Hello", offset=0), message) == "Writer> Hello world\n"
    assert shown(token("Hello", offset=0), token("b", turn="2"), message) == (
        "Writer> Hello\nWriter> b\nWriter> Hello world\n"
    )


def test_a_token_that_is_not_the_next_one_is_left_to_the_message() -> None:
    message = ("message", {"agent": "Writer", "turn": "1", "text": "Hello world"})
    assert shown(token("Hello", offset=0), token("orld", offset=7), message) == "Writer> Hello world\n"
    assert shown(token("orld", offset=7), message) == "Writer> Hello world\n"


def test_turns_side_by_side_are_told_apart() -> None:
    text = shown(token("a"), token("b", agent="Other", turn="2"), token("c"))
    assert text == "Writer> a\nOther> b\nWriter> c\n"


def test_a_turn_that_begins_again_is_said_so_and_its_message_counts() -> None:
    text = shown(
        token("Hel"),
        ("reset", {"agent": "Writer", "turn": "1"}),
        ("message", {"agent": "Writer", "turn": "1", "text": "Hello"}),
    )
    assert (
        text == "Writer> Hel\n(Writer begins this turn again: what it said before is void)\nWriter> Hello\n"
    )


def test_an_ask_comes_with_the_command_that_answers_it() -> None:
    text = shown(("approval", {"phase": "requested", "approval_id": "a~2", "title": "Publish?"}))
    assert text.splitlines()[0] == "asks   a~2  Publish?"
    assert "towline approve run-1 a~2" in text


def test_the_end_and_an_error_are_one_line_each() -> None:
    assert shown(("end", {"outcome": "completed", "output": {"text": "done"}})) == "completed  done\n"
    error = {"error": {"type": "ValueError", "message": "no"}}
    assert shown(("error", error)) == "failed  ValueError: no\n"


KINDS = ["token", "message", "tool_call", "status", "approval", "reset", "end", "error", "later"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner), max_leaves=5
)
FIELDS = st.sampled_from(["agent", "turn", "text", "name", "arguments", "status", "phase", "title", "output"])


@given(st.lists(st.tuples(st.sampled_from(KINDS), st.dictionaries(FIELDS, JSON, max_size=4)), max_size=8))
def test_nothing_in_a_stream_can_drive_the_terminal_and_the_last_line_is_ended(
    entries: list[tuple[str, dict[str, Any]]],
) -> None:
    text = shown(*entries)
    assert all(character.isprintable() or character == "\n" for character in text)
    assert not text or text.endswith("\n")
