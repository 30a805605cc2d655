"""What people type, checked."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from towline.cli import inputs
from towline.cli.errors import UsageError
from towline.contracts.settings import KafkaSettings

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(JSON)
def test_json_is_taken_as_it_is(value: Any) -> None:
    assert inputs.read_json(json.dumps(value), "--input") == value


def test_a_file_and_standard_input_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "input.json"
    file.write_text('{"a": 1}')
    assert inputs.read_json(f"@{file}", "--input") == {"a": 1}
    monkeypatch.setattr("sys.stdin", io.StringIO("[1]"))
    assert inputs.read_json("-", "--input") == [1]


@given(st.text())
def test_what_is_no_json_is_refused_in_one_line_that_names_the_option(text: str) -> None:
    if text == "-" or text.startswith("@"):
        return
    try:
        json.loads(text)
    except ValueError:
        with pytest.raises(UsageError) as caught:
            inputs.read_json(text, "--input")
        assert str(caught.value).startswith("--input: is not JSON")
        assert "\n" not in str(caught.value)


def test_a_bare_word_gets_the_hint_that_strings_have_quotes() -> None:
    with pytest.raises(UsageError, match=r"a string needs its quotes: '\"hello there\"'"):
        inputs.read_json("hello there", "--input")


def test_a_number_without_end_is_refused_in_one_line() -> None:
    with pytest.raises(UsageError, match=r"^--input: .*4300 digits") as caught:
        inputs.read_json("9" * 5_000, "--input")
    assert "\n" not in str(caught.value)


def test_standard_input_that_is_closed_or_no_utf_8_is_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(UsageError, match="--input -: cannot be read: standard input is closed"):
        inputs.read_json("-", "--input")
    # As Python opens it in the locale C: every byte has a character there.
    latin = io.TextIOWrapper(io.BytesIO(b'"caf\xe9"'), encoding="utf-8", errors="surrogateescape")
    monkeypatch.setattr("sys.stdin", latin)
    with pytest.raises(UsageError, match=r"--input -: cannot be read: .*can't decode byte 0xe9"):
        inputs.read_json("-", "--input")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--input @.*absent.json: cannot be read"):
        inputs.read_json(f"@{tmp_path}/absent.json", "--input")


def test_nesting_without_end_is_refused() -> None:
    with pytest.raises(UsageError, match="nested too deep"):
        inputs.read_json("[" * 100_000, "--input")


@pytest.mark.parametrize("text", ["", "a b", "x" * 129, "ä", "a/b", "a\n"])
def test_a_bad_run_id_is_refused_with_the_rule(text: str) -> None:
    with pytest.raises(UsageError, match="must be 1 to 128 of A-Z a-z 0-9"):
        inputs.run_id(text)


def test_tags_are_pairs() -> None:
    assert inputs.tags([]) is None
    assert inputs.tags(["a=1", "b=x=y", "c="]) == {"a": "1", "b": "x=y", "c": ""}
    for wrong in ("a", "=1"):
        with pytest.raises(UsageError, match="must be key=value"):
            inputs.tags([wrong])


def test_data_must_be_an_object() -> None:
    assert inputs.json_object(None, "--data") is None
    assert inputs.json_object('{"a": 1}', "--data") == {"a": 1}
    with pytest.raises(UsageError, match="--data: must be a JSON object"):
        inputs.json_object("[1]", "--data")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "cannot be read"),
        ("{", "is not JSON"),
        ("[]", "is no JSON object"),
        ('{"d": "x"}', "kid: is missing"),
    ],
)
def test_a_file_without_a_signing_key_is_refused_by_name(
    tmp_path: Path, content: str | None, why: str
) -> None:
    file = tmp_path / "key.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(UsageError) as refused:
        inputs.signer(file, "ann", KafkaSettings())
    assert str(refused.value).startswith(f"--signing-key-file {file}: {why}")
