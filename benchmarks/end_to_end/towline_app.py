"""The job as a Towline app: what a user would write."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from agent_framework_durabletask import DurableAIAgentOrchestrationContext, DurableAIAgentWorker
from benchmarks.end_to_end.job import AGENT_NAME, make_agent
from durabletask.task import OrchestrationContext, Task
from durabletask.worker import TaskHubGrpcWorker


def answer(context: OrchestrationContext, message: str) -> Generator[Task[Any], Any, str]:
    """One agent turn."""
    agent = DurableAIAgentOrchestrationContext(context).get_agent(AGENT_NAME)
    response = yield agent.run(message, session=agent.create_session())
    return response.text


def approved_answer(context: OrchestrationContext, message: str) -> Generator[Task[Any], Any, str]:
    """One agent turn, after somebody has approved."""
    decision = yield context.wait_for_external_event("HumanApproval")
    if not decision["approved"]:
        raise RuntimeError("rejected")
    return (yield from answer(context, message))


def setup_worker(worker: TaskHubGrpcWorker) -> None:
    """Register agent and orchestrations."""
    DurableAIAgentWorker(worker).add_agent(make_agent())
    worker.add_orchestrator(answer)
    worker.add_orchestrator(approved_answer)
