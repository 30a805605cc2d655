"""Two agents in one worker, each with a tool of its own."""

from __future__ import annotations

from typing import Annotated

from agent_framework import Agent
from agent_framework_durabletask import DurableAIAgentWorker
from durabletask.worker import TaskHubGrpcWorker

from examples.models import chat_client


def get_weather(city: Annotated[str, "The city to look up"]) -> str:
    """The weather in a city today."""
    return f"{city} has a light breeze and 21 °C."


def calculate_tip(
    bill: Annotated[float, "The bill"], percent: Annotated[float, "The tip in percent"] = 15.0
) -> str:
    """The tip for a bill, and the sum."""
    tip = round(bill * percent / 100, 2)
    return f"A tip of {tip:.2f} makes it {bill + tip:.2f} in all."


def setup_worker(worker: TaskHubGrpcWorker) -> None:
    """Register the agents `WeatherAgent` and `MathAgent`."""
    agents = DurableAIAgentWorker(worker)
    agents.add_agent(
        Agent(
            client=chat_client(),
            name="WeatherAgent",
            instructions="You report the weather. Use the tool, answer in one sentence.",
            tools=[get_weather],
        )
    )
    agents.add_agent(
        Agent(
            client=chat_client(),
            name="MathAgent",
            instructions="You do arithmetic with money. Use the tool, answer in one sentence.",
            tools=[calculate_tip],
        )
    )
