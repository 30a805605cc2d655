"""What `towline dev` serves when it is given no app and the examples are not here: nothing but Towline.

A copy of it is a good start for an app of your own: plain Agent Framework and Durable Task.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from agent_framework import Agent
from agent_framework_durabletask import DurableAIAgentOrchestrationContext, DurableAIAgentWorker
from durabletask.task import OrchestrationContext
from durabletask.worker import TaskHubGrpcWorker

from towline.testing.scripted import ScriptedChatClient


def greet(context: OrchestrationContext, name: str) -> Generator[Any, Any, str]:
    """Let an agent write a greeting, and ask a person whether to send it."""
    greeter = DurableAIAgentOrchestrationContext(context).get_agent("Greeter")
    greeting = yield greeter.run(f"Greet {name}.")
    context.set_custom_status({"greeting": greeting.text})
    decision = yield context.wait_for_external_event("HumanApproval")
    return greeting.text if decision["approved"] else "Nobody was greeted."


def setup_worker(worker: TaskHubGrpcWorker) -> None:
    """Register the agent and the orchestration."""
    model = ScriptedChatClient(lambda call: f"Ahoy! (You asked: {call.text})")
    greeter = Agent(client=model, name="Greeter", instructions="You greet people.")
    DurableAIAgentWorker(worker).add_agent(greeter)
    worker.add_orchestrator(greet)
