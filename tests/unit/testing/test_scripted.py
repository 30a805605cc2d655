"""The offline model, through MAF's own agent: what a user's agent sees of it."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from typing import Annotated

import pytest
from agent_framework import Agent, AgentResponse, UsageDetails
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from towline.testing.scripted import ModelCall, NoRuleError, Reply, Rule, ScriptedChatClient, ToolCall


class City(BaseModel):
    name: str
    people: int


def weather(place: Annotated[str, "Where"]) -> str:
    return f"{place}: 21 degrees"


async def streamed(agent: Agent, message: str, **options: object) -> tuple[list[str], AgentResponse]:
    stream = agent.run(message, stream=True, options=options)
    tokens = [update.text async for update in stream if update.text]
    return tokens, await stream.get_final_response()


async def test_the_first_rule_that_fits_answers() -> None:
    client = ScriptedChatClient(
        Rule("Sunny.", message="weather"), Rule("Ahoy.", instructions="pirate"), "Something else."
    )
    plain, pirate = Agent(client=client), Agent(client=client, instructions="You are a PIRATE.")

    assert (await plain.run("The Weather, please")).text == "Sunny."
    assert (await pirate.run("Hello")).text == "Ahoy."
    assert (await plain.run("Hello")).text == "Something else."


async def test_a_callable_answers_from_the_call() -> None:
    def answer(call: ModelCall) -> str:
        return f"{call.turn}: {call.text}"

    agent = Agent(client=ScriptedChatClient(answer))
    session = agent.create_session()

    assert (await agent.run("one", session=session)).text == "1: one"
    assert (await agent.run("two", session=session)).text == "2: two"


async def test_a_call_that_no_rule_fits_is_an_error_that_names_call_and_rules() -> None:
    agent = Agent(client=ScriptedChatClient(Rule("x", message="weather")))

    with pytest.raises(NoRuleError, match=r"'Good morning'.*'weather'"):
        await agent.run("Good morning")


async def test_a_stream_brings_the_tokens_one_by_one_and_the_usage() -> None:
    usage = UsageDetails(input_token_count=7, output_token_count=3, total_token_count=10)
    agent = Agent(client=ScriptedChatClient(Reply(text="one two three", usage=usage)))

    tokens, response = await streamed(agent, "count")

    assert tokens == ["one ", "two ", "three"]
    assert response.text == "one two three"
    assert response.usage_details == usage


@settings(max_examples=40, deadline=None)
@given(text=st.text())
def test_the_tokens_of_a_stream_make_up_the_text(text: str) -> None:
    agent = Agent(client=ScriptedChatClient(Reply(text=text)))

    tokens, _ = asyncio.run(streamed(agent, "say it"))

    assert "".join(tokens) == text


async def test_structured_output_arrives_as_a_value() -> None:
    agent = Agent(client=ScriptedChatClient(City(name="Oslo", people=700_000)))

    plain = await agent.run("a city", options={"response_format": City})
    _, response = await streamed(agent, "a city", response_format=City)

    assert plain.value == City(name="Oslo", people=700_000)
    assert response.value == plain.value


async def test_tools_are_run_and_their_results_reach_the_script() -> None:
    reply = Reply(
        tool_calls=(ToolCall("weather", {"place": "Oslo"}), ToolCall("weather", {"place": "Rome"})),
        after_tools=lambda call: " / ".join(call.tool_results),
    )
    client = ScriptedChatClient(reply)
    agent = Agent(client=client, tools=[weather])

    _, response = await streamed(agent, "How warm is it?")

    assert response.text == "Oslo: 21 degrees / Rome: 21 degrees"
    assert client.calls[0].tools == ("weather",)


async def test_tools_can_be_asked_for_again_after_tools() -> None:
    again = Reply(tool_calls=(ToolCall("weather", {"place": "Rome"}),))
    agent = Agent(
        client=ScriptedChatClient(
            Reply(tool_calls=(ToolCall("weather", {"place": "Oslo"}),), after_tools=again)
        ),
        tools=[weather],
    )

    assert (await agent.run("How warm is it?")).text == "Oslo: 21 degrees\nRome: 21 degrees"


async def test_tool_results_of_earlier_turns_do_not_answer_later_ones() -> None:
    reply = Reply(tool_calls=(ToolCall("weather", {"place": "Oslo"}),))
    agent = Agent(client=ScriptedChatClient(Rule(reply, message="warm"), "Fine."), tools=[weather])
    session = agent.create_session()

    first = await agent.run("How warm is it?", session=session)
    second = await agent.run("How are you?", session=session)
    third = await agent.run("And how warm now?", session=session)

    assert [r.text for r in (first, second, third)] == ["Oslo: 21 degrees", "Fine.", "Oslo: 21 degrees"]


async def test_an_exception_is_raised_in_place_of_an_answer() -> None:
    agent = Agent(client=ScriptedChatClient(ConnectionError("model away")))

    with pytest.raises(ConnectionError, match="model away"):
        await agent.run("Hello")
    with pytest.raises(ConnectionError, match="model away"):
        await streamed(agent, "Hello")


async def test_a_stream_can_break_in_the_middle() -> None:
    reply = Reply(text="one two three", error=ConnectionError("gone"), error_after_tokens=2)
    stream = Agent(client=ScriptedChatClient(reply)).run("count", stream=True)
    tokens: list[str] = []

    async def read() -> None:
        async for update in stream:
            tokens.append(update.text)  # noqa: PERF401 - the loop raises

    with pytest.raises(ConnectionError, match="gone"):
        await read()

    assert tokens == ["one ", "two "]


async def test_delays_hold_up_nobody_else() -> None:
    agent = Agent(client=ScriptedChatClient(Reply(text="a b c", delay_s=0.1, token_delay_s=0.05)))
    began = time.monotonic()

    replies = await asyncio.gather(*(streamed(agent, f"{n}") for n in range(50)))

    assert 0.2 <= time.monotonic() - began < 2.0
    assert {response.text for _, response in replies} == {"a b c"}


async def test_concurrent_calls_do_not_mix() -> None:
    agent = Agent(client=ScriptedChatClient(lambda call: f"{call.text} " * 5, token_delay_s=0.001))

    replies = await asyncio.gather(*(streamed(agent, f"m{n}") for n in range(40)))

    assert [response.text for _, response in replies] == [f"m{n} " * 5 for n in range(40)]


def test_the_module_needs_no_test_tools() -> None:
    program = "import sys, towline.testing.scripted; print(*{'pytest', 'testcontainers'} & set(sys.modules))"

    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert out.stdout.split() == []
