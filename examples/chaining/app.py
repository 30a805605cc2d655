"""One agent called twice in one session: the second call improves what the first one said."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from agent_framework import Agent, AgentResponse
from agent_framework_durabletask import DurableAIAgentOrchestrationContext, DurableAIAgentWorker
from durabletask.task import OrchestrationContext, Task
from durabletask.worker import TaskHubGrpcWorker

from examples.models import chat_client


def write_slogan(context: OrchestrationContext, product: str) -> Generator[Task[Any], Any, str]:
    """A slogan for a product, written and then made shorter."""
    writer = DurableAIAgentOrchestrationContext(context).get_agent("Copywriter")
    session = writer.create_session()
    draft: AgentResponse = yield writer.run(f"Write one sentence that sells this: {product}", session=session)
    context.set_custom_status({"draft": draft.text})
    final: AgentResponse = yield writer.run("Shorter: two or three words.", session=session)
    return final.text


def setup_worker(worker: TaskHubGrpcWorker) -> None:
    """Register the agent `Copywriter` and the orchestration `write_slogan`."""
    writer = Agent(client=chat_client(), name="Copywriter", instructions="You are a copywriter. Be concrete.")
    DurableAIAgentWorker(worker).add_agent(writer)
    worker.add_orchestrator(write_slogan)
