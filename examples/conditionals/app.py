"""One agent's structured answer decides what happens next, and which agent is asked at all."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from agent_framework import Agent, AgentResponse
from agent_framework_durabletask import DurableAIAgentOrchestrationContext, DurableAIAgentWorker
from durabletask.task import ActivityContext, OrchestrationContext, Task
from durabletask.worker import TaskHubGrpcWorker
from pydantic import BaseModel, ValidationError

from examples.models import chat_client


class Email(BaseModel):
    """The input."""

    email_id: str
    email_content: str


class SpamVerdict(BaseModel):
    """What the spam detector answers."""

    is_spam: bool
    reason: str


class EmailReply(BaseModel):
    """What the email assistant answers."""

    response: str


def mark_as_spam(_: ActivityContext, reason: str) -> str:
    """Stands for the call of a mail server."""
    return f"Email marked as spam: {reason}"


def send_email(_: ActivityContext, response: str) -> str:
    """Stands for the call of a mail server."""
    return f"Email sent: {response}"


def handle_email(context: OrchestrationContext, payload: Any) -> Generator[Task[Any], Any, str]:
    """Marks spam as spam and answers everything else.

    Raises:
        ValueError: The input is no `Email`.
    """
    try:
        email = Email.model_validate(payload)
    except ValidationError as error:
        raise ValueError(f"Invalid email payload: {error}") from error

    agents = DurableAIAgentOrchestrationContext(context)
    text = f"Email {email.email_id}:\n{email.email_content}"
    judged: AgentResponse = yield agents.get_agent("SpamDetector").run(
        f"Is this spam? {text}", options={"response_format": SpamVerdict}
    )
    verdict = SpamVerdict.model_validate(judged.value)
    if verdict.is_spam:
        return (yield context.call_activity(mark_as_spam, input=verdict.reason))

    drafted: AgentResponse = yield agents.get_agent("EmailAssistant").run(
        f"Draft an answer. {text}", options={"response_format": EmailReply}
    )
    reply = EmailReply.model_validate(drafted.value)
    return (yield context.call_activity(send_email, input=reply.response))


def setup_worker(worker: TaskHubGrpcWorker) -> None:
    """Register the agents `SpamDetector` and `EmailAssistant` and the orchestration `handle_email`."""
    agents = DurableAIAgentWorker(worker)
    agents.add_agent(
        Agent(client=chat_client(), name="SpamDetector", instructions="You tell spam from other mail.")
    )
    agents.add_agent(
        Agent(
            client=chat_client(),
            name="EmailAssistant",
            instructions="You answer mails, politely and briefly.",
        )
    )
    worker.add_orchestrator(handle_email)
    worker.add_activity(mark_as_spam)
    worker.add_activity(send_email)
