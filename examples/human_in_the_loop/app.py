"""An agent writes, a person approves or sends it back with a remark; nothing is published without a yes."""

from __future__ import annotations

from collections.abc import Generator
from datetime import timedelta
from typing import Any

from agent_framework import Agent, AgentResponse
from agent_framework_durabletask import DurableAIAgentOrchestrationContext, DurableAIAgentWorker
from durabletask.task import ActivityContext, OrchestrationContext, Task, when_any
from durabletask.worker import TaskHubGrpcWorker
from pydantic import BaseModel, Field, ValidationError

from examples.models import chat_client


class ArticleRequest(BaseModel):
    """The input."""

    topic: str
    max_review_attempts: int = Field(default=3, ge=1)
    approval_timeout_seconds: float = Field(default=300, gt=0)


class Article(BaseModel):
    """What the author writes."""

    title: str = ""
    content: str


class HumanApproval(BaseModel):
    """What a reviewer decides."""

    approved: bool
    feedback: str = ""


def publish_article(_: ActivityContext, article: dict[str, str]) -> str:
    """Stands for the call of a content system."""
    return f"Published: {article['title']}"


def write_article(context: OrchestrationContext, payload: Any) -> Generator[Task[Any], Any, dict[str, str]]:
    """An article that a person has approved, as `{content, title}`.

    Raises:
        ValueError: The input is no `ArticleRequest`.
        TimeoutError: Nobody decided in time.
        RuntimeError: Rejected as often as the input allows.
        ValidationError: What came as a decision is none.
    """
    try:
        request = ArticleRequest.model_validate(payload)
    except ValidationError as error:
        raise ValueError(f"Invalid article request: {error}") from error

    author = DurableAIAgentOrchestrationContext(context).get_agent("Author")
    session = author.create_session()
    prompt = f"Write a short article about '{request.topic}'."
    for attempt in range(1, request.max_review_attempts + 1):
        written: AgentResponse = yield author.run(
            prompt, session=session, options={"response_format": Article}
        )
        article = Article.model_validate(written.value)
        context.set_custom_status({"attempt": attempt, **article.model_dump()})

        decision = context.wait_for_external_event("HumanApproval")
        timeout = context.create_timer(timedelta(seconds=request.approval_timeout_seconds))
        if (yield when_any([decision, timeout])) is timeout:
            raise TimeoutError(
                f"Human approval timed out after {request.approval_timeout_seconds:g} second(s)."
            )
        timeout.cancel()
        approval = HumanApproval.model_validate(decision.get_result())
        if approval.approved:
            yield context.call_activity(publish_article, input=article.model_dump())
            return {"content": article.content, "title": article.title}
        prompt = f"A reviewer rejected it. Write it anew. Feedback: {approval.feedback or 'none given'}"
    raise RuntimeError(f"Content could not be approved after {request.max_review_attempts} iteration(s).")


def setup_worker(worker: TaskHubGrpcWorker) -> None:
    """Register the agent `Author` and the orchestration `write_article`."""
    author = Agent(client=chat_client(), name="Author", instructions="You write short articles with a title.")
    DurableAIAgentWorker(worker).add_agent(author)
    worker.add_orchestrator(write_article)
    worker.add_activity(publish_article)
