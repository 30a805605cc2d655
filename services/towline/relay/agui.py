"""A run's stream as AG-UI events (Agent User Interaction Protocol), so that AG-UI front ends can show a run.

| of the run's stream | AG-UI |
|---|---|
| first entry | `RUN_STARTED` |
| `token`, `message` | `TEXT_MESSAGE_START`, `_CONTENT`, `_END`; one message a turn and attempt |
| `tool_call` | `TOOL_CALL_START`, `_ARGS`, `_END` |
| `reset` | `MESSAGES_SNAPSHOT` without what is void, then what comes again |
| `status` | `STATE_SNAPSHOT` |
| `approval` | `CUSTOM` named `towline.approval` |
| `end`, `error` | `RUN_FINISHED`, `RUN_ERROR` |
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from ag_ui.core import (
    AssistantMessage,
    BaseEvent,
    CustomEvent,
    MessagesSnapshotEvent,
    RunErrorEvent,
    RunFinishedEvent,
    RunStartedEvent,
    StateSnapshotEvent,
    TextMessageContentEvent,
    TextMessageEndEvent,
    TextMessageStartEvent,
    ToolCallArgsEvent,
    ToolCallEndEvent,
    ToolCallStartEvent,
)

from towline.relay import sse
from towline.relay.feed import Piece


@dataclass(slots=True)
class _Message:
    message_id: str
    agent: str
    text: str = ""
    open: bool = True


class AguiTranslator:
    """Translates one client's stream, entry by entry.

    Args:
        run_id: The run.
        cursor: Entries up to this one are taken in but not sent: the client has had them.
    """

    def __init__(self, run_id: str, cursor: str) -> None:
        self._run_id = run_id
        self._cursor = sse.id_key(cursor)
        self.session_id: str | None = None
        """The run's, if it is known; else that of its first entry. Names the thread."""
        self._thread_id = run_id
        self._started = False
        self._all_void = False
        """The client is to be told that what it had before is void, once there is something to tell."""
        self._messages: dict[str, _Message] = {}
        self._tool_calls = 0

    def translate(self, piece: Piece) -> bytes:
        """The AG-UI events that `piece` makes, as SSE."""
        out: list[bytes] = []
        for entry_id, kind, data in _entries(piece.body):
            if entry_id == sse.START_ID:
                # What follows begins anew: nothing of it is what the client has had.
                self._cursor = sse.id_key(sse.START_ID)
                if not self._started:
                    self._all_void = True
                    continue
            events = list(self._events(kind, data))
            if sse.id_key(entry_id) <= self._cursor and entry_id != sse.START_ID:
                continue
            out += [f"data: {event.model_dump_json(by_alias=True)}\n\n".encode() for event in events[:-1]]
            # Resuming at an entry, so its id goes with the last of its events.
            out += [
                f"id: {entry_id}\ndata: {e.model_dump_json(by_alias=True)}\n\n".encode() for e in events[-1:]
            ]
        return b"".join(out)

    def _events(self, kind: str, data: dict[str, Any]) -> Iterator[BaseEvent]:
        handler = _HANDLERS.get(kind)
        if not self._started:
            self._started = True
            self._thread_id = str(self.session_id or data.get("session_id") or self._run_id)
            yield RunStartedEvent(thread_id=self._thread_id, run_id=self._run_id)
            if self._all_void:
                yield self._snapshot()
        if handler is not None:
            yield from handler(self, data)

    def _open(self, data: Mapping[str, Any]) -> Iterator[BaseEvent]:
        turn = data["turn"]
        message_id = f"{self._run_id}/{turn}/{data['attempt']}"
        known = self._messages.get(turn)
        if known is None or known.message_id != message_id:
            self._messages[turn] = _Message(message_id, data["agent"])
            yield TextMessageStartEvent(message_id=message_id, role="assistant", name=data["agent"])

    def _token(self, data: dict[str, Any]) -> Iterator[BaseEvent]:
        yield from self._open(data)
        message = self._messages[data["turn"]]
        if message.open and len(message.text) == data.get("offset", len(message.text)):
            message.text += data["text"]
            yield TextMessageContentEvent(message_id=message.message_id, delta=data["text"])

    def _message(self, data: dict[str, Any]) -> Iterator[BaseEvent]:
        yield from self._open(data)
        message = self._messages[data["turn"]]
        rest = data["text"].removeprefix(message.text)
        fits = data["text"].startswith(message.text)
        if fits and rest:
            yield TextMessageContentEvent(message_id=message.message_id, delta=rest)
        message.text = data["text"]
        if message.open:
            message.open = False
            yield TextMessageEndEvent(message_id=message.message_id)
        if not fits:
            yield self._snapshot()

    def _tool_call(self, data: dict[str, Any]) -> Iterator[BaseEvent]:
        self._tool_calls += 1
        call_id = f"{self._run_id}/tool/{self._tool_calls}"
        yield ToolCallStartEvent(tool_call_id=call_id, tool_call_name=data["name"])
        if data.get("arguments"):
            yield ToolCallArgsEvent(tool_call_id=call_id, delta=data["arguments"])
        yield ToolCallEndEvent(tool_call_id=call_id)

    def _reset(self, data: dict[str, Any]) -> Iterator[BaseEvent]:
        turn = data.get("turn")
        void = list(self._messages) if turn is None else [turn]
        for name in void:
            message = self._messages.pop(name, None)
            if message is not None and message.open:
                yield TextMessageEndEvent(message_id=message.message_id)
        yield self._snapshot()

    def _snapshot(self) -> BaseEvent:
        return MessagesSnapshotEvent(
            messages=[
                AssistantMessage(
                    id=message.message_id, role="assistant", content=message.text, name=message.agent
                )
                for message in self._messages.values()
            ]
        )

    def _status(self, data: dict[str, Any]) -> Iterator[BaseEvent]:
        yield StateSnapshotEvent(snapshot=data)

    def _approval(self, data: dict[str, Any]) -> Iterator[BaseEvent]:
        yield CustomEvent(name="towline.approval", value=data)

    def _end(self, data: dict[str, Any]) -> Iterator[BaseEvent]:
        if data.get("outcome") == "rejected":
            yield RunErrorEvent(message=data.get("error", {}).get("message", "rejected"), code="rejected")
        elif data.get("outcome") == "cancelled":
            yield RunFinishedEvent.model_validate(
                {"thread_id": self._thread_id, "run_id": self._run_id, "outcome": {"type": "cancelled"}}
            )
        else:
            yield RunFinishedEvent(thread_id=self._thread_id, run_id=self._run_id, result=data.get("output"))

    def _error(self, data: dict[str, Any]) -> Iterator[BaseEvent]:
        error: dict[str, Any] = data.get("error", {})
        yield RunErrorEvent(message=error.get("message", "failed"), code=error.get("type"))


_Handler = Callable[[AguiTranslator, dict[str, Any]], Iterator[BaseEvent]]
_HANDLERS: Final[Mapping[str, _Handler]] = {
    kind: getattr(AguiTranslator, f"_{kind}")
    for kind in ("token", "message", "tool_call", "reset", "status", "approval", "end", "error")
}


def _entries(body: bytes) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """The SSE events that `sse.encode` wrote."""
    for block in body.decode().split("\n\n"):
        if block:
            entry_id, kind, data = (line.partition(": ")[2] for line in block.split("\n", 2))
            yield entry_id, kind, json.loads(data)
