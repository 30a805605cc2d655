"""One agent. It keeps its conversation per session."""

from __future__ import annotations

from agent_framework import Agent
from agent_framework_durabletask import DurableAIAgentWorker
from durabletask.worker import TaskHubGrpcWorker

from examples.models import chat_client


def setup_worker(worker: TaskHubGrpcWorker) -> None:
    """Register the agent `Joker`."""
    joker = Agent(
        client=chat_client(), name="Joker", instructions="You are a dry comedian. Answer with one short joke."
    )
    DurableAIAgentWorker(worker).add_agent(joker)
