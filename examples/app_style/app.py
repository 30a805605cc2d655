"""The same idea as human_in_the_loop, written with `towline.worker.App`: typed input, approvals, retries."""

from __future__ import annotations

from datetime import timedelta

from agent_framework import Agent
from pydantic import BaseModel, Field

from examples.models import chat_client
from towline.worker import AgentRetry, App, RunCancelled, RunHandle, Steps

app = App("newsletter")
app.agent(Agent(client=chat_client(), name="Editor", instructions="You write short articles with a title."))


class Issue(BaseModel):
    """The input: its JSON Schema is in the catalog, and what does not fit is rejected at once."""

    topic: str = Field(min_length=1, max_length=200)
    readers: int = Field(gt=0, description="How many get it.")
    hours_to_decide: float = Field(default=72, gt=0)


class Article(BaseModel):
    """What the agent writes."""

    title: str
    content: str


class Sent(BaseModel):
    """The output."""

    title: str
    readers: int
    approved_by: list[str]


@app.activity
def reserve(readers: int) -> str:
    """Stands for booking a slot at a mail provider."""
    return f"slot-for-{readers}"


@app.activity
def release(slot: str) -> None:
    """Gives the slot back."""


@app.activity
def send(article: Article) -> None:
    """Stands for the mail provider."""


@app.orchestration(approvers=["ann", "bob", "eve"])
def newsletter(run: RunHandle, issue: Issue) -> Steps[Sent | None]:
    """A newsletter that two of three editors have approved."""
    slot = yield run.activity(reserve, issue.readers)
    try:
        draft = yield run.agent(
            "Editor",
            f"Write a short article about '{issue.topic}'.",
            response_format=Article,
            retry=AgentRetry(attempts=3),
        )
        article = Article.model_validate(draft.value)
        decision = yield run.approval(
            title=f"Send to {issue.readers} readers?",
            details=article,
            quorum=2,
            timeout=timedelta(hours=issue.hours_to_decide),
        )
    except (Exception, RunCancelled):  # the latter is no Exception
        yield run.activity(release, slot)
        raise
    if not decision.approved:
        yield run.activity(release, slot)
        return None
    yield run.activity(send, article)
    editors = [vote.approver or "somebody" for vote in decision.votes]
    return Sent(title=article.title, readers=issue.readers, approved_by=editors)
