"""From what an agent says (Microsoft Agent Framework) to the turn's stream.

The worker host wraps every agent and tells a `TurnObserver` of each execution of a turn. An agent whose
streaming call raises is called a second time within the same turn: that is a second execution here, and
voids the first.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Protocol

from agent_framework import AgentResponse, AgentResponseUpdate, Content

from towline.worker.streams.writer import TokenWriter, TurnStream


class TurnRecorder(Protocol):
    """Hears one execution of one agent turn. No method blocks or raises."""

    def on_update(self, update: AgentResponseUpdate) -> None:
        """The agent streamed a piece of its answer."""

    def on_finish(self, response: AgentResponse) -> None:
        """The agent has answered."""

    def on_error(self, error: BaseException) -> None:
        """The agent raised, or was cancelled (`asyncio.CancelledError`)."""


class TurnObserver(Protocol):
    """Is told of every execution of an agent turn."""

    def on_start(self, run_id: str, turn: str | int, agent: str) -> TurnRecorder:
        """An execution begins; called again for the same turn when the turn is executed again."""
        ...


class StreamObserver:
    """Sends every turn to the run's stream."""

    def __init__(self, writer: TokenWriter) -> None:
        self._writer = writer

    def on_start(self, run_id: str, turn: str | int, agent: str) -> StreamRecorder:
        """See `TurnObserver.on_start`."""
        return StreamRecorder(self._writer.open(run_id, turn, agent))


class StreamRecorder:
    """Sends one execution of a turn to the run's stream.

    Models stream a tool call in pieces (name first, then arguments bit by bit); it is written once it is
    whole: when something else follows it.
    """

    def __init__(self, stream: TurnStream) -> None:
        self._stream = stream
        self._call_id: str | None = None
        self._call_name = ""
        self._call_arguments: list[str] = []
        self._calls_written: set[str] = set()

    def on_update(self, update: AgentResponseUpdate) -> None:
        """See `TurnRecorder.on_update`."""
        for content in update.contents:
            if content.type == "text" and content.text:
                self._end_call()
                self._stream.write(content.text)
            elif content.type == "function_call":
                self._add_to_call(content)
            elif content.type == "function_result":
                self._end_call()

    def on_finish(self, response: AgentResponse) -> None:
        """See `TurnRecorder.on_finish`."""
        self._end_call()
        for message in response.messages:
            for content in message.contents:
                if content.type == "function_call" and content.call_id not in self._calls_written:
                    self._add_to_call(content)
                    self._end_call()
        self._stream.finish(response.text)

    def on_error(self, error: BaseException) -> None:
        """See `TurnRecorder.on_error`."""
        self._stream.fail(error, cancelled=isinstance(error, asyncio.CancelledError))

    def _add_to_call(self, content: Content) -> None:
        # The pieces after the first may come without an id.
        if content.call_id and content.call_id != self._call_id:
            self._end_call()
            self._call_id = content.call_id
        if content.name:
            self._call_name = content.name
        arguments = content.arguments
        if isinstance(arguments, Mapping):
            self._call_arguments = [json.dumps(arguments, ensure_ascii=False, default=str)]
        elif arguments:
            self._call_arguments.append(arguments)

    def _end_call(self) -> None:
        if self._call_id is None and not self._call_name:
            return
        if self._call_id is not None:
            self._calls_written.add(self._call_id)
        self._stream.tool_call(self._call_name, "".join(self._call_arguments) or None)
        self._call_id, self._call_name, self._call_arguments = None, "", []
