"""An agent with a long answer, which readers follow word by word."""

from __future__ import annotations

from typing import Annotated

from agent_framework import Agent
from agent_framework_durabletask import DurableAIAgentWorker
from durabletask.worker import TaskHubGrpcWorker

from examples.models import chat_client


def get_forecast(city: Annotated[str, "The city to look up"]) -> str:
    """The weather of the next days in a city."""
    return f"dry and mild in {city}, rain on the third day"


def get_events(city: Annotated[str, "The city to look up"]) -> str:
    """What is on in a city."""
    return f"the flea market of {city}"


def setup_worker(worker: TaskHubGrpcWorker) -> None:
    """Register the agent `TravelPlanner`."""
    planner = Agent(
        client=chat_client(),
        name="TravelPlanner",
        instructions=(
            "You are a travel planner. Look up forecast and events first, then plan day by day in plain text."
        ),
        tools=[get_forecast, get_events],
    )
    DurableAIAgentWorker(worker).add_agent(planner)
