"""Workflows as runs: graph, pauses for people, sub-workflows; plain JSON on Kafka."""

from __future__ import annotations

import base64
import pickle
from pathlib import Path
from typing import Any

import pytest
from tests.integration.wire.raw import Seen, Wire

CONTENT = {"content_id": "c1", "body": "tides"}
PICKLE_TRACES = (b"pickle", b"__type__", b"gASV")


def none_is_pickled(wire: Wire) -> bool:
    return not any(trace in (seen.value or b"") for seen in wire.seen for trace in PICKLE_TRACES)


async def only_ask(wire: Wire, run_id: str) -> Seen:
    found = await wire.until(lambda: wire.of(run_id, "approval.requested"), f"{run_id} asks")
    return found[0]


async def test_a_graph_with_an_agent_gives_typed_json_and_its_tokens(wire: Wire) -> None:
    run_id = await wire.start("tone", "  some text ")
    outcome = await wire.outcome(run_id)
    assert outcome.type == "run.completed"
    assert outcome.data["output"] == [{"tone": "calm", "words": 3}]
    assert outcome.data["usage"]["output_tokens"] == 3
    assert outcome.data["run_type"] == "tone"
    states = [seen.data["status"]["state"] for seen in wire.of(run_id, "run.progressed")]
    assert states
    events = [
        event["type"]
        for seen in wire.of(run_id, "run.progressed")
        for event in seen.data["status"].get("events", ())
    ]
    assert "executor_invoked" in events
    assert events.count("output") == 1, "each event is told once"
    assert none_is_pickled(wire)


@pytest.mark.parametrize(("approved", "output"), [(True, "c1: published"), (False, "c1: dropped")])
async def test_a_pause_is_an_ask_and_the_decision_goes_on_with_it(
    wire: Wire, approved: bool, output: str
) -> None:
    run_id = await wire.start("gated", CONTENT)
    asked = await only_ask(wire, run_id)
    assert asked.data["details"] == {"content_id": "c1", "prompt": "Publish tides?"}
    assert asked.data["title"] == "gate"
    decision = await wire.decide(
        run_id, asked.data["approval_id"], approved, data={"notes": "fine"}, digest=asked.data["digest"]
    )
    outcome = await wire.outcome(run_id)
    assert outcome.data["output"][-1] == output
    assert outcome.data["output"][0] == {"content_id": "c1", "approved": approved, "notes": "fine"}
    assert (await wire.answer(decision)).type == "approval.resolved"
    assert none_is_pickled(wire)


async def test_a_nested_pause_is_announced_under_the_run_and_routed_to_the_child(wire: Wire) -> None:
    run_id = await wire.start("nested", CONTENT)
    asked = await only_ask(wire, run_id)
    assert asked.data["approval_id"].startswith("review_sub~0~")
    unknown = await wire.decide(run_id, "review_sub~1~nobody", True)
    decision = await wire.decide(run_id, asked.data["approval_id"], True, approver="ann")
    outcome = await wire.outcome(run_id)
    assert outcome.data["output"] == ["c1: published"]
    resolved = await wire.answer(decision)
    assert (resolved.type, resolved.data["outcome"], resolved.data["approver"]) == (
        "approval.resolved",
        "approved",
        "ann",
    )
    assert (await wire.answer(unknown)).data["reason"] == "unknown_approval"
    assert none_is_pickled(wire)


async def test_a_response_of_the_wrong_type_fails_the_run_instead_of_ending_it_empty(wire: Wire) -> None:
    run_id = await wire.start("gated", CONTENT)
    asked = await only_ask(wire, run_id)
    await wire.raise_event(run_id, asked.data["approval_id"], {"nonsense": 1})
    outcome = await wire.outcome(run_id)
    assert outcome.type == "run.failed"
    assert outcome.data["error"]["type"] == "ValidationError"


class _Attack:
    def __init__(self, trace: Path) -> None:
        self._trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self._trace,))


def hostile_input(number: int, trace: Path) -> Any:
    payload = base64.b64encode(pickle.dumps(_Attack(trace))).decode()
    marked = {"__pickled__": payload, "__type__": "builtins:object"}
    return (
        marked,
        {"content_id": marked, "body": "x"},
        {"__subworkflow_input__": marked},
        {"__subworkflow_input__": marked, "__subworkflow_address__": {"root_instance_id": "other"}},
    )[number]


def was_opened(trace: Path) -> bool:
    return trace.exists()


def test_the_attack_would_work_if_it_were_opened(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(_Attack(tmp_path / "trace")))
    assert was_opened(tmp_path / "trace")


@pytest.mark.parametrize("number", range(4))
async def test_pickles_in_the_input_are_never_opened(wire: Wire, number: int, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    run_id = await wire.start("gated", hostile_input(number, trace))
    await wire.until(
        lambda: wire.outcomes(run_id) or wire.of(run_id, "approval.requested"), f"{run_id} goes on"
    )
    await wire.control(run_id, "cancel")
    await wire.outcome(run_id)
    assert not was_opened(trace)


@pytest.mark.parametrize("text", ["page", "circular"])
async def test_what_executors_hand_on_need_not_be_json(wire: Wire, text: str) -> None:
    run_id = await wire.start("scanned", text)
    outcome = await wire.outcome(run_id)
    assert outcome.type == "run.completed"
    assert [base64.urlsafe_b64decode(given) for given in outcome.data["output"]] == [b"\x89PNG\xff"]
    events = [
        event for seen in wire.of(run_id, "run.progressed") for event in seen.data["status"].get("events", ())
    ]
    assert "executor_invoked" in [event.get("type") for event in events]
    assert none_is_pickled(wire)
    assert any(event.get("not_json") for event in events) == (text == "circular")
