"""What the scripted model of the examples makes of what a user may type."""

from __future__ import annotations

import json

import pytest
from agent_framework import Agent

from examples.offline import offline_client


async def says(instructions: str, *messages: str) -> str:
    """What an agent answers to the last of some messages of one conversation."""
    agent = Agent(client=offline_client(), instructions=instructions)
    session = agent.create_session()
    answers = [(await agent.run(message, session=session)).text for message in messages]
    return answers[-1]


@pytest.mark.parametrize("topic", ["tides", "the sailor's knot", "'quoted'", "two\nlines"])
async def test_an_article_is_about_its_whole_topic(topic: str) -> None:
    asked = f"Write a short article about '{topic}'."
    rejected = "A reviewer rejected it. Write it anew. Feedback: say 'less'. Feedback: now"

    first = json.loads(await says("You write short articles.", asked))
    second = json.loads(await says("You write short articles.", asked, rejected))

    assert first["title"] == f"On {topic}"
    assert second["title"] == f"On {topic}, take 2"
    assert second["content"].endswith("a reviewer said: say 'less'. Feedback: now")


async def test_a_slogan_names_the_whole_product() -> None:
    text = await says("You are a copywriter.", "Write one sentence that sells this: Lamp: the new one")

    assert text.startswith("Lamp: the new one: made")
