"""The job's one agent, the same in every system: a Microsoft Agent Framework agent on a scripted model."""

from __future__ import annotations

from typing import Any

from agent_framework import Agent

from towline.testing.scripted import ModelCall, Reply, Rule, ScriptedChatClient

AGENT_NAME = "Answerer"


def message(model_ms: int, number: int) -> str:
    """A message that the model takes `model_ms` to answer: one started system serves every workload."""
    return f"message {model_ms}:{number}"


def latency_s(text: str) -> float:
    """How long the model takes to answer `message`, in seconds."""
    return int(text.removeprefix("message ").partition(":")[0]) / 1000


def expected(text: str) -> str:
    """What the agent answers."""
    return f"echo: {text}"


def _answer(call: ModelCall) -> Reply:
    return Reply(text=expected(call.text), delay_s=latency_s(call.text))


def make_agent() -> Agent[Any]:
    """An agent that answers ``echo: <message>``."""
    return Agent(client=ScriptedChatClient(Rule(_answer)), name=AGENT_NAME, instructions="Answer.")
