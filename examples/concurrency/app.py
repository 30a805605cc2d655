"""Two agents asked the same thing side by side; the answers come back together."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from agent_framework import Agent, AgentResponse
from agent_framework_durabletask import DurableAIAgentOrchestrationContext, DurableAIAgentWorker
from durabletask.task import OrchestrationContext, Task, when_all
from durabletask.worker import TaskHubGrpcWorker

from examples.models import chat_client


def ask_experts(context: OrchestrationContext, question: str) -> Generator[Task[Any], Any, dict[str, str]]:
    """What a physicist and a chemist say to one question."""
    agents = DurableAIAgentOrchestrationContext(context)
    experts = [agents.get_agent("Physicist"), agents.get_agent("Chemist")]
    answers: list[AgentResponse] = yield when_all(
        [expert.run(question, session=expert.create_session()) for expert in experts]
    )
    return {"physicist": answers[0].text, "chemist": answers[1].text}


def setup_worker(worker: TaskHubGrpcWorker) -> None:
    """Register the agents `Physicist` and `Chemist` and the orchestration `ask_experts`."""
    agents = DurableAIAgentWorker(worker)
    for name, calling in (("Physicist", "physicist"), ("Chemist", "chemist")):
        instructions = f"You are a {calling}. Answer from your field, in one sentence."
        agents.add_agent(Agent(client=chat_client(), name=name, instructions=instructions))
    worker.add_orchestrator(ask_experts)
