"""docs/wire-contract.md names all there is, and its examples are events."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest
import yaml

from towline.contracts import EVENT_MODELS, TOPICS, EventData, RunRequested, Topics, decode
from towline.contracts.cloudevents import Record
from towline.contracts.errors import DecodeReason
from towline.contracts.events import ApprovalOutcome, ApprovalRefusal, ControlAction, ControlRefusal
from towline.delivery.dead_letters import VALUE_LEFT_OUT, Origin
from towline.delivery.letters import (
    MARK,
    MARK_NOTE,
    MARK_OF,
    REPLAY_COUNT,
    REPLAY_OF,
    Letter,
    mark_record,
)
from towline.delivery.processing import HANDLER_FAILED

ROOT = Path(__file__).parents[3]
CONTRACTS, SERVICES = ROOT / "contracts", ROOT / "services/towline"
TEXT = (ROOT / "docs/wire-contract.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("model", EVENT_MODELS)
def test_every_event_type_and_field_is_named(model: type[EventData]) -> None:
    short = model.event_type.removeprefix("towline.").removesuffix(".v1")
    assert f"`{model.event_type}`" in TEXT or f"`{short}`" in TEXT
    for field in model.model_fields:
        assert re.search(rf"\b{field}\b", TEXT), field


@pytest.mark.parametrize(
    "words", [DecodeReason, ApprovalOutcome, ApprovalRefusal, ControlAction, ControlRefusal]
)
def test_every_stable_word_is_named(words: object) -> None:
    for word in get_args(words):
        assert f"`{word}`" in TEXT, word


def test_every_topic_is_named_with_its_settings() -> None:
    for spec in TOPICS:
        row = next(line for line in TEXT.splitlines() if line.startswith(f"| `{Topics().name(spec.name)}`"))
        assert f"| {spec.partitions} |" in row
        if "retention.ms" in spec.settings:
            assert f"{int(spec.settings['retention.ms']) // 86_400_000} days" in row
        else:
            assert "compacted" in row
        for name, value in spec.settings.items():
            assert f"`{name}={value}`" in TEXT or name == "retention.ms", f"{spec.name}: {name}"


def test_every_reason_of_a_dead_letter_is_named() -> None:
    sources = [*(SERVICES / "bridge").glob("*.py"), *(SERVICES / "delivery").glob("*.py")]
    written = {
        word
        for source in sources
        for word in re.findall(r'DeadLetter\(\s*"(\w+)"', source.read_text(encoding="utf-8"))
    }
    assert "run_id_conflict" in written
    for word in (*written, HANDLER_FAILED):
        assert f"| `{word}` |" in TEXT or f"`{word}`," in TEXT or f", `{word}`" in TEXT, word


def test_all_that_is_on_the_dead_letters_topic_is_named() -> None:
    for name in (MARK, MARK_OF, MARK_NOTE, VALUE_LEFT_OUT, REPLAY_OF, REPLAY_COUNT):
        assert f"`{name}`" in TEXT
    asyncapi = yaml.safe_load((CONTRACTS / "asyncapi.yaml").read_text(encoding="utf-8"))
    messages = asyncapi["components"]["messages"]
    mark = mark_record(
        Letter(Origin("towline.runs", 1, 2), Record(None, None, ()), "r", "e", "t"), "discarded", "n"
    )
    assert {name for name, _ in mark.headers} == messages["DeadLetterMark"]["headers"]["properties"].keys()
    assert VALUE_LEFT_OUT in messages["DeadLetter"]["headers"]["properties"]
    channel = asyncapi["channels"]["dead-letters"]
    assert channel["messages"].keys() == {"DeadLetter", "DeadLetterMark"}
    assert channel["bindings"]["kafka"]["topicConfiguration"]["max.message.bytes"] == 2 * 1024 * 1024


def test_the_examples_by_hand_are_one_and_the_same_request() -> None:
    kcat = re.search(r"echo '(.*?)' \|\n(.*?)\n```", TEXT, re.DOTALL)
    structured = re.search(r"```json\n(.*?)```", TEXT, re.DOTALL)
    assert kcat is not None
    assert structured is not None
    headers = [(name, value.encode()) for name, value in re.findall(r"-H (\S+?)=(\S+)", kcat[2])]
    binary = decode(value=kcat[1].encode(), headers=headers)
    assert binary == decode(
        value=structured[1].encode(), headers=[("content-type", b"application/cloudevents+json")]
    )
    assert binary.data == RunRequested(
        run_id="order-4711", run_type="agent.Writer", input={"message": "A haiku about rain"}
    )


def test_the_answer_shown_is_an_outcome() -> None:
    shown = re.search(r"```\n(ce_specversion=.*?)\norder-4711\n(\{.*?\})\n```", TEXT, re.DOTALL)
    assert shown is not None
    headers = [tuple(part.split("=", 1)) for part in re.split(r",\s*", shown[1])]
    event = decode(value=shown[2].encode(), headers=[(name, value.encode()) for name, value in headers])
    assert event.id == "order-4711/outcome"
