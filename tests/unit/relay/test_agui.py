"""The AG-UI translation, read back with the protocol's own models."""

from __future__ import annotations

import json
from typing import Any

from ag_ui.core import Event as AguiEvent
from pydantic import TypeAdapter

from towline.relay import sse
from towline.relay.agui import AguiTranslator
from towline.relay.feed import Piece

Entry = tuple[str, dict[str, Any]]
TURN = {"agent": "Poet", "turn": "1", "attempt": 1}
RUN: list[Entry] = [
    ("status", {"run_id": "r", "run_type": "t", "session_id": "s"}),
    ("token", {**TURN, "text": "Ro", "offset": 0}),
    ("token", {**TURN, "text": "ses", "offset": 2}),
    ("tool_call", {**TURN, "name": "look", "arguments": '{"a":1}'}),
    ("message", {**TURN, "text": "Roses"}),
    ("approval", {"phase": "requested", "approval_id": "a"}),
    ("end", {"outcome": "completed", "output": 1}),
]


def piece(entries: list[Entry], begin: int = 1) -> Piece:
    blocks = [sse.encode(f"{begin + n}-0", kind, json.dumps(data)) for n, (kind, data) in enumerate(entries)]
    return Piece(b"".join(blocks), f"{begin + len(entries)}-0")


def read(body: bytes) -> list[Any]:
    adapter: TypeAdapter[Any] = TypeAdapter(AguiEvent)
    lines = body.decode().split("\n")
    return [adapter.validate_json(line[6:]) for line in lines if line.startswith("data: ")]


def kinds(body: bytes) -> list[str]:
    return [event.type.value if hasattr(event.type, "value") else event.type for event in read(body)]


def test_a_run_is_a_sequence_that_agui_clients_accept() -> None:
    body = AguiTranslator("r", "0-0").translate(piece(RUN))
    assert kinds(body) == [
        "RUN_STARTED",
        "STATE_SNAPSHOT",
        "TEXT_MESSAGE_START",
        "TEXT_MESSAGE_CONTENT",
        "TEXT_MESSAGE_CONTENT",
        "TOOL_CALL_START",
        "TOOL_CALL_ARGS",
        "TOOL_CALL_END",
        "TEXT_MESSAGE_END",
        "CUSTOM",
        "RUN_FINISHED",
    ]
    events = read(body)
    assert (events[0].thread_id, events[0].run_id) == ("s", "r")
    assert events[-1].result == 1


def test_what_is_void_is_taken_out_of_the_messages() -> None:
    translator = AguiTranslator("r", "0-0")
    translator.translate(piece(RUN[:3]))
    body = translator.translate(
        piece(
            [
                ("reset", {**TURN, "attempt": 2}),
                ("token", {**TURN, "attempt": 2, "text": "Li", "offset": 0}),
                ("message", {**TURN, "attempt": 2, "text": "Lilies"}),
            ],
            10,
        )
    )
    assert kinds(body) == [
        "TEXT_MESSAGE_END",
        "MESSAGES_SNAPSHOT",
        "TEXT_MESSAGE_START",
        "TEXT_MESSAGE_CONTENT",
        "TEXT_MESSAGE_CONTENT",
        "TEXT_MESSAGE_END",
    ]
    assert read(body)[1].messages == []
    assert [event.delta for event in read(body) if event.type == "TEXT_MESSAGE_CONTENT"] == ["Li", "lies"]


def test_a_reader_that_resumes_gets_the_rest_and_nothing_twice() -> None:
    whole = AguiTranslator("r", "0-0").translate(piece(RUN))
    for cursor in range(1, len(RUN) + 1):
        had = AguiTranslator("r", "0-0").translate(piece(RUN[:cursor]))
        rest = AguiTranslator("r", f"{cursor}-0").translate(piece(RUN))
        assert had + rest == whole


def test_a_reader_that_resumed_gets_all_of_what_comes_again_after_a_reset() -> None:
    translator = AguiTranslator("r", "3-0")
    assert translator.translate(piece(RUN[:3])) == b""
    translator.translate(Piece(sse.reset("lost"), "0-0"))
    again = read(translator.translate(piece(RUN)))
    assert "".join(event.delta for event in again if event.type == "TEXT_MESSAGE_CONTENT") == "Roses"


def test_failures_end_with_an_error() -> None:
    failed = AguiTranslator("r", "0-0").translate(
        piece([("error", {"error": {"type": "E", "message": "m"}})])
    )
    assert kinds(failed) == ["RUN_STARTED", "RUN_ERROR"]
    assert (read(failed)[1].message, read(failed)[1].code) == ("m", "E")
    cancelled = AguiTranslator("r", "0-0").translate(piece([("end", {"outcome": "cancelled"})]))
    assert kinds(cancelled) == ["RUN_STARTED", "RUN_FINISHED"]
