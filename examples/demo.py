"""What `towline demo` runs: one row a pattern."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

APP: Final = "examples.all:setup_worker"
"""What the worker of the demo hosts."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What a reviewer of the demo says to one `approval.requested`."""

    approved: bool
    feedback: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Demo:
    """One run of the demo."""

    pattern: str
    run_type: str
    input: Any
    decisions: tuple[Decision, ...] = field(default=())
    """The answers to the run's `approval.requested` events, in the order in which they arrive."""


DEMO: Final[tuple[Demo, ...]] = (
    Demo(pattern="single_agent", run_type="agent.Joker", input={"message": "Tell me a joke about Kafka."}),
    Demo(
        pattern="multi_agent",
        run_type="agent.WeatherAgent",
        input={"message": "What is the weather in Oslo today?"},
    ),
    Demo(
        pattern="streaming",
        run_type="agent.TravelPlanner",
        input={"message": "Plan three days in Porto."},
    ),
    Demo(pattern="chaining", run_type="write_slogan", input="a bicycle lamp that needs no battery"),
    Demo(pattern="concurrency", run_type="ask_experts", input="What is heat?"),
    Demo(
        pattern="conditionals",
        run_type="handle_email",
        input={"email_id": "mail-1", "email_content": "Could we meet on Tuesday at ten?"},
    ),
    Demo(
        pattern="human_in_the_loop",
        run_type="write_article",
        input={"topic": "tides", "max_review_attempts": 3, "approval_timeout_seconds": 120},
        decisions=(Decision(approved=False, feedback="say less"), Decision(approved=True)),
    ),
)
