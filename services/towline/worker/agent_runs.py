"""The run type ``agent.<Name>`` that exists for every agent: one message in, the answer out."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, Final

from agent_framework import AgentResponse
from agent_framework_durabletask import (
    AgentSessionId,
    DurableAgentSession,
    DurableAIAgentOrchestrationContext,
)
from pydantic import BaseModel, ConfigDict, Field, JsonValue
from pydantic_core import to_jsonable_python

from towline.contracts.events import RunTypeInfo
from towline.worker.context import RunContext
from towline.worker.registry import run_type_info

PREFIX: Final = "agent."


class AgentInput(BaseModel):
    """Input of an ``agent.<Name>`` run."""

    model_config = ConfigDict(extra="ignore", strict=True)

    message: str = Field(min_length=1, description="What to say to the agent.")


class AgentOutput(BaseModel):
    """Output of an ``agent.<Name>`` run."""

    text: str = Field(description="The agent's answer.")
    value: JsonValue = Field(default=None, description="The structured answer, of an agent that gives one.")


def run_type(agent: str, description: str | None) -> RunTypeInfo:
    """The catalog entry of an agent's run type."""
    return run_type_info(
        f"{PREFIX}{agent}",
        schema=AgentInput.model_json_schema,
        description=description or f"One turn of the agent {agent}.",
    )


def session_key(context: Any) -> str:
    """Key of the agent's conversation: the session's, else one of the run's own.

    ``~`` is in no session id, so that a run never meets another's session by its name.
    """
    if isinstance(context, RunContext):
        envelope = context.run.envelope
        return envelope.session_id or f"~{envelope.run_id}"
    return f"~{context.instance_id}"


def orchestrator(agent: str) -> Callable[..., Any]:
    """The orchestrator behind the run type of `agent`."""

    def run_agent(context: Any, value: Any) -> Generator[Any, Any, dict[str, Any]]:
        request = AgentInput.model_validate(value)
        proxy = DurableAIAgentOrchestrationContext(context).get_agent(agent)
        key = AgentSessionId(name=agent, key=session_key(context))
        session = DurableAgentSession(durable_session_id=key)
        response: AgentResponse = yield proxy.run(request.message, session=session)
        return AgentOutput(text=response.text, value=to_jsonable_python(response.value)).model_dump(
            exclude_none=True
        )

    run_agent.__name__ = run_agent.__qualname__ = f"{PREFIX}{agent}"
    run_agent.__doc__ = f"One turn of the agent {agent}."
    return run_agent
