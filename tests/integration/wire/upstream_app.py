"""A worker module that knows only MAF and durabletask: the examples, and what the wire tests need besides."""

from __future__ import annotations

from collections.abc import Generator
from datetime import timedelta
from typing import Any

from agent_framework import Agent
from agent_framework_durabletask import DurableAIAgentOrchestrationContext, DurableAIAgentWorker
from durabletask.task import ActivityContext, OrchestrationContext, Task
from durabletask.worker import TaskHubGrpcWorker

from examples.all import setup_worker as setup_examples
from towline.testing.scripted import Reply, ScriptedChatClient

Steps = Generator[Task[Any], Any, Any]


def collect(context: OrchestrationContext, count: int) -> Steps:
    """`count` events named `item`, in the order in which they came."""
    received: list[Any] = []
    for _ in range(count):
        received.append((yield context.wait_for_external_event("item")))  # noqa: PERF401 - a generator
    return received


def two_questions(context: OrchestrationContext, _: Any) -> Steps:
    first = yield context.wait_for_external_event("HumanApproval")
    second = yield context.wait_for_external_event("HumanApproval")
    return [first["approved"], second["approved"]]


def wait_for_go(context: OrchestrationContext, _: Any) -> Steps:
    return (yield context.wait_for_external_event("go"))


def ask_slowly(context: OrchestrationContext, message: str) -> Steps:
    """One call of a model that takes 2 s."""
    answer = yield DurableAIAgentOrchestrationContext(context).get_agent("Slow").run(message)
    return answer.text


def steps(context: OrchestrationContext, count: int) -> Steps:
    """`count` activities and short timers, one after the other."""
    total = 0
    for number in range(count):
        total += yield context.call_activity(double, input=number)
        yield context.create_timer(timedelta(milliseconds=100))
    return total


def double(_: ActivityContext, number: int) -> int:
    return 2 * number


def setup_worker(worker: TaskHubGrpcWorker) -> None:
    setup_examples(worker)
    agents = DurableAIAgentWorker(worker)
    agents.add_agent(
        Agent(
            client=ScriptedChatClient(Reply(text="At last.", delay_s=2.0)), name="Slow", instructions="slow"
        )
    )
    agents.add_agent(
        Agent(
            client=ScriptedChatClient(ConnectionError("the model is away")),
            name="Broken",
            instructions="broken",
        )
    )
    for orchestrator in (collect, two_questions, wait_for_go, ask_slowly, steps):
        worker.add_orchestrator(orchestrator)
    worker.add_activity(double)
