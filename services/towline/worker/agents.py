"""The wrapper around every hosted agent: takes the turn out of its options, joins its trace, tells observers.

The seam for whoever wants to watch agent turns (the token stream does): implement `TurnObserver` and
give it to the host. Observers never disturb a run: what they raise is logged.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

from agent_framework import AgentResponse, AgentResponseUpdate, AgentSession
from opentelemetry import trace

from towline.telemetry.propagation import in_trace
from towline.telemetry.runs import RunRef, bind
from towline.worker.context import TOWLINE_OPTION
from towline.worker.stops import stops_told

_log = logging.getLogger(__name__)


class TurnRecorder(Protocol):
    """Hears one execution of one agent turn, on the loop that runs agents: must not block."""

    def on_update(self, update: AgentResponseUpdate) -> None:
        """The agent has said something."""
        ...

    def on_finish(self, response: AgentResponse) -> None:
        """The agent has answered."""
        ...

    def on_error(self, error: BaseException) -> None:
        """The agent has failed, or its task was cancelled."""
        ...


class TurnObserver(Protocol):
    """Is told of every execution of an agent turn.

    A turn is executed again after a crash, and within one execution of its entity after its streaming
    failed (the agent is then called once more without streaming): each execution voids those before it.
    """

    def on_start(self, run_id: str, turn: str, agent: str) -> TurnRecorder:
        """An execution begins.

        Args:
            run_id: The run, as the world knows it.
            turn: The call's number in the run: "1", "2", …; in a child orchestration "{child}/1".
            agent: The name under which the agent is registered.
        """
        ...


class InstrumentAgent(Protocol):
    """Called for each agent that is registered, whichever way; answers the agent to host."""

    def __call__(self, agent: Any, registered_name: str) -> Any:
        """Wrap `agent`, or answer it as it is."""
        ...


class HostAgent(Protocol):
    """Called for each agent that is registered; answers the agent to host."""

    def __call__(self, agent: Any, registered_name: str, *, heard: bool) -> Any:
        """Wrap `agent`. `heard`: the app has a callback for what it streams."""
        ...


def no_instrumentation(agent: Any, registered_name: str, *, heard: bool = False) -> Any:
    """The default: the agent as it is."""
    del registered_name, heard
    return agent


@dataclass(frozen=True, slots=True)
class _TurnOf:
    run_id: str
    turn: str
    traceparent: str | None
    run_type: str | None = None
    session_id: str | None = None

    def begin(self) -> None:
        """Put the run on the spans and log lines of this task, which ends with the turn."""
        run = RunRef(self.run_id, self.run_type, self.session_id, self.turn)
        bind(run)
        # The entity's span began before anybody knew the run.
        trace.get_current_span().set_attributes(run.attributes())


class _Recorders:
    """All recorders of one execution; none of them can disturb it."""

    def __init__(self, observers: Sequence[TurnObserver], about: _TurnOf, agent: str) -> None:
        self._recorders: list[TurnRecorder] = []
        for observer in observers:
            try:
                self._recorders.append(observer.on_start(about.run_id, about.turn, agent))
            except Exception:  # noqa: BLE001 — watching must never disturb a run
                _log.warning("turn_observer_failed", exc_info=True, extra={"hook": "on_start"})

    def tell(self, hook: str, what: Any) -> None:
        for recorder in self._recorders:
            try:
                getattr(recorder, hook)(what)
            except Exception:  # noqa: BLE001 — watching must never disturb a run
                _log.warning("turn_observer_failed", exc_info=True, extra={"hook": hook})


class ObservedAgent:
    """An agent whose turns are watched; for everything else the agent itself.

    Args:
        agent: The agent to host.
        name: The name under which it is registered.
        observers: Who watches.
        streams: Whether anybody listens while the agent speaks. If not, it is called unstreamed, which takes
            half of the CPU, although its entity always asks for a stream.
    """

    def __init__(
        self, agent: Any, name: str, observers: Sequence[TurnObserver] = (), *, streams: bool = True
    ) -> None:
        self._agent = agent
        self._streams = streams
        self._registered_name = name
        self._observers = tuple(observers)
        self.id = agent.id
        self.name = agent.name
        self.description = agent.description

    def __getattr__(self, name: str) -> Any:
        if name == "_agent":  # Not there yet while a copy is being made.
            raise AttributeError(name)
        return getattr(self._agent, name)

    def run(
        self,
        messages: Any = None,
        *,
        stream: bool = False,
        session: AgentSession | None = None,
        options: dict[str, Any] | None = None,
        **more: Any,
    ) -> Any:
        """Run the agent, streaming or not, without the option that tells which turn this is."""
        own_options = dict(options or {})
        about = _turn_of(own_options.pop(TOWLINE_OPTION, None))
        arguments: dict[str, Any] = {**more, "options": own_options}
        if session is not None:
            arguments["session"] = session
        if about is None:
            return self._agent.run(messages, stream=stream, **arguments)
        if stream and not self._streams:
            return _Whole(lambda: self._run_whole(about, messages, arguments))
        if stream:
            recorders = _Recorders(self._observers, about, self._registered_name)
            return _WatchedStream(self._agent, about, recorders, messages, arguments)
        return self._run_whole(about, messages, arguments)

    async def _run_whole(self, about: _TurnOf, messages: Any, arguments: dict[str, Any]) -> AgentResponse:
        recorders = _Recorders(self._observers, about, self._registered_name)
        try:
            about.begin()
            with stops_told(), in_trace(about.traceparent):
                answer = self._agent.run(messages, **arguments)
                response = await answer if inspect.isawaitable(answer) else answer
        except BaseException as error:
            recorders.tell("on_error", error)
            raise
        recorders.tell("on_finish", response)
        return response


class _WatchedStream:
    """The stream of one turn, as the agent entity consumes it: iterated, then asked for the response."""

    def __init__(
        self, agent: Any, about: _TurnOf, recorders: _Recorders, messages: Any, arguments: dict[str, Any]
    ) -> None:
        self._agent = agent
        self._about = about
        self._recorders = recorders
        self._messages = messages
        self._arguments = arguments
        self._stream: Any = None

    async def __aiter__(self) -> AsyncIterator[AgentResponseUpdate]:
        try:
            self._about.begin()
            with stops_told(), in_trace(self._about.traceparent):
                stream: Any = self._agent.run(self._messages, stream=True, **self._arguments)
                self._stream = stream if hasattr(stream, "__aiter__") else await stream
                async for update in self._stream:
                    self._recorders.tell("on_update", update)
                    yield update
        except BaseException as error:
            self._recorders.tell("on_error", error)
            raise

    async def get_final_response(self) -> AgentResponse:
        """The whole response, after the stream was consumed."""
        try:
            with stops_told():
                response = await self._stream.get_final_response()
        except BaseException as error:
            self._recorders.tell("on_error", error)
            raise
        self._recorders.tell("on_finish", response)
        return response


class _Whole:
    """What stands for the stream of a turn to which nobody listens: no updates, then the response."""

    def __init__(self, run: Callable[[], Awaitable[AgentResponse]]) -> None:
        self._run = run
        self._response: AgentResponse | None = None

    def __aiter__(self) -> AsyncIterator[AgentResponseUpdate]:
        return self

    async def __anext__(self) -> AgentResponseUpdate:
        await self.get_final_response()
        raise StopAsyncIteration

    async def get_final_response(self) -> AgentResponse:
        """The whole response."""
        if self._response is None:
            self._response = await self._run()
        return self._response


def _turn_of(about: Any) -> _TurnOf | None:
    if not isinstance(about, dict):
        return None
    told = cast("dict[str, Any]", about)
    return _TurnOf(
        str(told.get("run_id")),
        str(told.get("turn")),
        told.get("traceparent"),
        told.get("run_type"),
        told.get("session_id"),
    )
