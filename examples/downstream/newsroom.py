"""A newsroom: an agent drafts a headline, an editor decides on it within three days."""

from __future__ import annotations

from collections.abc import Generator
from datetime import timedelta
from typing import Any

from agent_framework import Agent, AgentResponse
from agent_framework_durabletask import DurableAIAgentOrchestrationContext, DurableAIAgentWorker
from durabletask.task import ActivityContext, OrchestrationContext, Task, when_any
from durabletask.worker import TaskHubGrpcWorker

from towline.testing.scripted import ScriptedChatClient

TIME_TO_DECIDE = timedelta(days=3)


def print_headline(_: ActivityContext, headline: str) -> str:
    """Stands for the press."""
    return f"Printed: {headline}"


def headline(context: OrchestrationContext, topic: str) -> Generator[Task[Any], Any, str]:
    """A headline, printed once an editor has approved it."""
    draft: AgentResponse = yield DurableAIAgentOrchestrationContext(context).get_agent("Reporter").run(topic)
    context.set_custom_status({"draft": draft.text})
    decision = context.wait_for_external_event("EditorDecision")
    deadline = context.create_timer(TIME_TO_DECIDE)
    if (yield when_any([decision, deadline])) is deadline:
        raise TimeoutError(f"nobody decided on {draft.text!r} in time")
    deadline.cancel()
    if not decision.get_result()["approved"]:
        return f"Spiked: {draft.text}"
    return (yield context.call_activity(print_headline, input=draft.text))


def setup_worker(worker: TaskHubGrpcWorker) -> None:
    """Register agent, orchestration and activity."""
    model = ScriptedChatClient(lambda call: f"{call.text.upper()}!")
    DurableAIAgentWorker(worker).add_agent(Agent(client=model, name="Reporter", instructions="You report."))
    worker.add_orchestrator(headline)
    worker.add_activity(print_headline)
