"""A run with everything that a trace can hold: an activity, an agent with a tool, an approval, a child."""

from __future__ import annotations

from collections.abc import Generator
from datetime import timedelta
from typing import Any

from agent_framework import Agent
from agent_framework_durabletask import DurableAIAgentOrchestrationContext, DurableAIAgentWorker
from durabletask.task import ActivityContext, OrchestrationContext, Task, when_any
from durabletask.worker import TaskHubGrpcWorker

from towline.testing.scripted import Reply, Rule, ScriptedChatClient, ToolCall

PROMPT = "SECRET-PROMPT"
COMPLETION = "SECRET-COMPLETION"
INSTRUCTIONS = "SECRET-INSTRUCTIONS"
TOOL_ARGUMENT = "SECRET-ARGUMENT"
TOOL_RESULT = "SECRET-RESULT"
SECRETS = (PROMPT, COMPLETION, INSTRUCTIONS, TOOL_ARGUMENT, TOOL_RESULT)

Steps = Generator[Task[Any], Any, Any]


def look_up(topic: str) -> str:
    """Look a topic up."""
    return f"{TOOL_RESULT} about {topic}"


def review(context: OrchestrationContext, topic: str) -> Steps:
    """Fetch, write, ask, archive."""
    material = yield context.call_activity(fetch, input=topic)
    author = DurableAIAgentOrchestrationContext(context).get_agent("Author")
    written = yield author.run(f"{PROMPT}: write about {topic} by {material}")
    decision = context.wait_for_external_event("HumanApproval")
    timeout = context.create_timer(timedelta(seconds=60))
    yield when_any([decision, timeout])
    timeout.cancel()
    kept = yield context.call_sub_orchestrator(archive, input=written.text)
    return {"approved": decision.get_result()["approved"], "kept": kept}


def slow_review(context: OrchestrationContext, topic: str) -> Steps:
    """One turn of an agent that takes its time."""
    yield context.call_activity(fetch, input=topic)
    written = yield DurableAIAgentOrchestrationContext(context).get_agent("Slow").run(f"{PROMPT}: {topic}")
    return len(written.text)


def archive(context: OrchestrationContext, text: str) -> Steps:
    return (yield context.call_activity(store, input=text))


def fetch(_: ActivityContext, topic: str) -> str:
    return f"material on {topic}"


def store(_: ActivityContext, text: str) -> int:
    return len(text)


def setup_worker(worker: TaskHubGrpcWorker) -> None:
    call = Reply(tool_calls=(ToolCall("look_up", {"topic": TOOL_ARGUMENT}),), after_tools=COMPLETION)
    author = Agent(
        client=ScriptedChatClient(Rule(call)), name="Author", instructions=INSTRUCTIONS, tools=[look_up]
    )
    slow = Agent(
        client=ScriptedChatClient(Reply(text=COMPLETION, delay_s=3.0)), name="Slow", instructions=INSTRUCTIONS
    )
    agents = DurableAIAgentWorker(worker)
    agents.add_agent(author)
    agents.add_agent(slow)
    for orchestrator in (review, slow_review, archive):
        worker.add_orchestrator(orchestrator)
    for activity in (fetch, store):
        worker.add_activity(activity)
