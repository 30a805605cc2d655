"""The job's one agent, the same in every system: a Microsoft Agent Framework agent on a scripted model."""

from __future__ import annotations

import os
from typing import Any

from agent_framework import Agent

from towline.testing.scripted import Rule, ScriptedChatClient

AGENT_NAME = "Answerer"
MODEL_MS_VARIABLE = "BENCH_MODEL_MS"


def latency_s() -> float:
    """How long the model takes, in seconds (`BENCH_MODEL_MS`)."""
    return int(os.environ.get(MODEL_MS_VARIABLE, "0")) / 1000


def make_agent() -> Agent[Any]:
    """An agent that answers ``echo: <message>``."""
    client = ScriptedChatClient(Rule(lambda call: f"echo: {call.text}"), delay_s=latency_s())
    return Agent(client=client, name=AGENT_NAME, instructions="Answer.")


def expected(message: str) -> str:
    """What the agent answers."""
    return f"echo: {message}"
