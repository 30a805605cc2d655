"""The wrapper around every agent: options cleaned, executions told, observers harmless."""

from __future__ import annotations

from typing import Any

import pytest
from agent_framework import Agent, AgentResponse
from opentelemetry import trace

from towline.testing.scripted import Reply, ScriptedChatClient
from towline.worker.agents import ObservedAgent

ABOUT = {"run_id": "run-1", "turn": "1", "traceparent": None}


class Recorder:
    def __init__(self, heard: list[tuple[str, Any]], *, broken: bool = False) -> None:
        self._heard = heard
        self._broken = broken

    def on_start(self, run_id: str, turn: str, agent: str) -> Recorder:
        self._hear("start", (run_id, turn, agent))
        return self

    def on_update(self, update: Any) -> None:
        self._hear("update", update.text)

    def on_finish(self, response: AgentResponse) -> None:
        self._hear("finish", response.text)

    def on_error(self, error: BaseException) -> None:
        self._hear("error", type(error).__name__)

    def _hear(self, hook: str, what: Any) -> None:
        if self._broken:
            raise RuntimeError(f"{hook} failed")
        self._heard.append((hook, what))


class Client(ScriptedChatClient):
    """Remembers how it was called."""

    def __init__(self, reply: Any) -> None:
        super().__init__(reply)
        self.streamed: list[bool] = []

    def _inner_get_response(self, *, stream: bool, **more: Any) -> Any:
        self.streamed.append(stream)
        return super()._inner_get_response(stream=stream, **more)


def observed(reply: Any, *, broken: bool = False) -> tuple[ObservedAgent, list[tuple[str, Any]]]:
    heard: list[tuple[str, Any]] = []
    agent = Agent(client=ScriptedChatClient(reply), name="Writer", instructions="write")
    return ObservedAgent(agent, "Registered", [Recorder(heard, broken=broken)]), heard


async def streamed(agent: ObservedAgent, **options: Any) -> str:
    stream = agent.run("hi", stream=True, options=options)
    async for _ in stream:
        pass
    return (await stream.get_final_response()).text


async def test_a_streamed_turn_is_told_from_start_to_finish() -> None:
    agent, heard = observed("one two")
    assert await streamed(agent, towline=ABOUT) == "one two"
    assert heard[0] == ("start", ("run-1", "1", "Registered"))
    assert "".join(what for hook, what in heard if hook == "update") == "one two"
    assert heard[-1] == ("finish", "one two")


async def test_a_whole_turn_is_told_too() -> None:
    agent, heard = observed("one two")
    response = await agent.run("hi", options={"towline": ABOUT})
    assert response.text == "one two"
    assert [hook for hook, _ in heard] == ["start", "finish"]


async def test_an_agent_to_which_nobody_listens_is_called_whole_though_its_entity_asks_for_a_stream() -> None:
    heard: list[tuple[str, Any]] = []
    client = Client("one two")
    agent = ObservedAgent(Agent(client=client, name="Writer"), "Registered", [Recorder(heard)], streams=False)
    assert await streamed(agent, towline=ABOUT) == "one two"
    assert client.streamed == [False]
    assert heard == [("start", ("run-1", "1", "Registered")), ("finish", "one two")]


async def test_an_agent_to_which_somebody_listens_is_called_streamed() -> None:
    client = Client("one two")
    agent = ObservedAgent(Agent(client=client, name="Writer"), "Registered", [Recorder([])])
    assert await streamed(agent, towline=ABOUT) == "one two"
    assert client.streamed == [True]


async def test_an_unheard_agent_that_fails_is_told_as_an_error() -> None:
    heard: list[tuple[str, Any]] = []
    client = Client(Reply(text="one", error=OSError("gone")))
    agent = ObservedAgent(Agent(client=client, name="Writer"), "Registered", [Recorder(heard)], streams=False)
    with pytest.raises(Exception, match="gone"):
        await streamed(agent, towline=ABOUT)
    assert [hook for hook, _ in heard] == ["start", "error"]


async def test_a_stream_that_fails_is_told_as_an_error_and_the_second_call_as_another_execution() -> None:
    agent, heard = observed(Reply(text="one two", error=OSError("gone"), error_after_tokens=1))
    with pytest.raises(Exception, match="gone"):
        await streamed(agent, towline=ABOUT)
    with pytest.raises(Exception, match="gone"):
        await agent.run("hi", options={"towline": ABOUT})
    hooks = [hook for hook, _ in heard]
    assert hooks[0] == "start"
    assert hooks[-3:] == ["error", "start", "error"]


async def test_an_observer_that_raises_disturbs_nothing() -> None:
    agent, _ = observed("one two", broken=True)
    assert await streamed(agent, towline=ABOUT) == "one two"
    assert (await agent.run("hi", options={"towline": ABOUT})).text == "one two"


async def test_a_call_from_elsewhere_is_passed_on_untold() -> None:
    agent, heard = observed("one two")
    assert (await agent.run("hi")).text == "one two"
    assert heard == []


async def test_the_agent_does_not_see_the_turn_in_its_options() -> None:
    seen: list[Any] = []

    class Spy:
        id, name, description = "1", "Spy", None

        async def run(self, messages: Any = None, **arguments: Any) -> AgentResponse:
            seen.append((arguments, trace.get_current_span().get_span_context().trace_id))
            return AgentResponse(messages=[])

    traceparent = f"00-{'a' * 32}-{'b' * 16}-01"
    options = {"towline": {**ABOUT, "traceparent": traceparent}, "temperature": 0}
    await ObservedAgent(Spy(), "Spy").run("hi", options=options)
    assert seen == [({"options": {"temperature": 0}}, int("a" * 32, 16))]
    assert "towline" in options, "the caller's options are left alone"


def test_it_is_the_agent_for_everything_else() -> None:
    agent, _ = observed("x")
    assert agent.name == "Writer"
    assert agent.create_session() is not None
