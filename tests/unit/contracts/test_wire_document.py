"""docs/wire-contract.md names all there is, and its examples are events."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest

from towline.contracts import EVENT_MODELS, TOPICS, EventData, RunRequested, Topics, decode
from towline.contracts.errors import DecodeReason
from towline.contracts.events import ApprovalOutcome, ApprovalRefusal, ControlAction, ControlRefusal

TEXT = (Path(__file__).parents[3] / "docs/wire-contract.md").read_text(encoding="utf-8")


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
