"""Apps of the worker tests: workflows, and orchestrations that cancel, continue, fail and crash."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Never

from agent_framework import (
    Agent,
    AgentExecutorResponse,
    Executor,
    Workflow,
    WorkflowBuilder,
    WorkflowContext,
    WorkflowExecutor,
    handler,
    response_handler,
)
from agent_framework_durabletask import DurableAIAgentWorker
from durabletask.task import ActivityContext, OrchestrationContext, RetryPolicy
from pydantic import BaseModel

from towline.testing.scripted import Reply, Rule, ScriptedChatClient
from towline.worker import App, RunCancelled, RunHandle, Steps, beginnings
from towline.worker.turn import Turn


class Verdict(BaseModel):
    tone: str
    words: int


@dataclass
class Submission:
    content_id: str
    body: str


@dataclass
class ReviewRequest:
    content_id: str
    prompt: str


class ReviewResponse(BaseModel):
    approved: bool
    notes: str = ""


@dataclass
class Reviewed:
    content_id: str
    approved: bool
    notes: str


class Intake(Executor):
    @handler
    async def take(self, text: str, ctx: WorkflowContext[str]) -> None:
        await ctx.send_message(text.strip())


class Summary(Executor):
    @handler
    async def summarize(self, answer: AgentExecutorResponse, ctx: WorkflowContext[Never, Verdict]) -> None:
        await ctx.yield_output(Verdict(tone="calm", words=len(answer.agent_response.text.split())))


class SubmissionIntake(Executor):
    @handler
    async def take(self, submission: Submission, ctx: WorkflowContext[Submission]) -> None:
        await ctx.send_message(submission)


class Gate(Executor):
    @handler
    async def ask(self, submission: Submission, ctx: WorkflowContext) -> None:
        await ctx.request_info(
            request_data=ReviewRequest(submission.content_id, f"Publish {submission.body}?"),
            response_type=ReviewResponse,
        )

    @response_handler
    async def answered(
        self, request: ReviewRequest, response: ReviewResponse, ctx: WorkflowContext[Reviewed, Reviewed]
    ) -> None:
        reviewed = Reviewed(request.content_id, response.approved, response.notes)
        await ctx.send_message(reviewed)
        await ctx.yield_output(reviewed)


class Publish(Executor):
    @handler
    async def publish(self, reviewed: Reviewed, ctx: WorkflowContext[Never, str]) -> None:
        await ctx.yield_output(f"{reviewed.content_id}: {'published' if reviewed.approved else 'dropped'}")


@dataclass
class Scan:
    image: bytes
    pages: list[Any]


class Scanner(Executor):
    @handler
    async def scan(self, text: str, ctx: WorkflowContext[Scan]) -> None:
        pages: list[Any] = []
        if text == "circular":
            pages.append(pages)
        await ctx.send_message(Scan(b"\x89PNG\xff", pages))


class Archive(Executor):
    @handler
    async def store(self, scan: Scan, ctx: WorkflowContext[Never, bytes]) -> None:
        await ctx.yield_output(scan.image)


def scanned_workflow() -> Workflow:
    scanner, archive = Scanner(id="scanner"), Archive(id="archive")
    return WorkflowBuilder(name="scanned", start_executor=scanner).add_edge(scanner, archive).build()


def tone_workflow(client: ScriptedChatClient) -> Workflow:
    intake = Intake(id="intake")
    critic = Agent(client=client, name="Critic", instructions="critic")
    summary = Summary(id="summary")
    return (
        WorkflowBuilder(name="tone", start_executor=intake)
        .add_edge(intake, critic)
        .add_edge(critic, summary)
        .build()
    )


def gated_workflow() -> Workflow:
    intake, gate, publish = SubmissionIntake(id="intake"), Gate(id="gate"), Publish(id="publish")
    return (
        WorkflowBuilder(name="gated", start_executor=intake)
        .add_edge(intake, gate)
        .add_edge(gate, publish)
        .build()
    )


def nested_workflow() -> Workflow:
    inner = WorkflowBuilder(name="inner_review", start_executor=Gate(id="gate")).build()
    intake, publish = SubmissionIntake(id="intake"), Publish(id="publish")
    review_sub = WorkflowExecutor(inner, id="review_sub")
    return (
        WorkflowBuilder(name="nested", start_executor=intake)
        .add_edge(intake, review_sub)
        .add_edge(review_sub, publish)
        .build()
    )


def note(_: ActivityContext, text: str) -> str:
    return text


def booking(ctx: OrchestrationContext, _: Any) -> Any:
    """Books, waits, and undoes the booking when it is cancelled."""
    booked = yield ctx.call_activity(note, input="hotel")
    try:
        yield ctx.call_sub_orchestrator(wait_long, input=None)
    except RunCancelled as cancelled:
        ctx.set_custom_status({"undoing": booked, "reason": cancelled.reason})
        yield ctx.call_activity(note, input="undo hotel")
        raise


def wait_long(ctx: OrchestrationContext, _: Any) -> Any:
    yield ctx.wait_for_external_event("never")


def countdown(ctx: OrchestrationContext, left: int) -> Any:
    ctx.set_custom_status({"left": left})
    word = yield ctx.wait_for_external_event("word")
    if left == 0:
        return word
    ctx.continue_as_new(left - 1)


def leaves_a_child(ctx: OrchestrationContext, generation: int) -> Any:
    if generation == 0:
        ctx.call_sub_orchestrator(wait_long, input=None)
        ctx.continue_as_new(1)
        return
    yield ctx.wait_for_external_event("never2")


def asks_a_child(ctx: OrchestrationContext, _: Any) -> Any:
    return (yield ctx.call_sub_orchestrator(child_that_asks, input=None))


def asks_a_child_again(ctx: OrchestrationContext, left: int) -> Any:
    approved = yield ctx.call_sub_orchestrator(child_that_asks, input=None)
    if left > 0 and approved:
        ctx.continue_as_new(left - 1)
    return approved


def tries_a_child(ctx: OrchestrationContext, _: Any) -> Any:
    once_more = RetryPolicy(first_retry_interval=timedelta(milliseconds=10), max_number_of_attempts=2)
    return (yield ctx.call_sub_orchestrator(child_that_insists, input=None, retry_policy=once_more))


def child_that_insists(ctx: OrchestrationContext, _: Any) -> Any:
    answer = yield ctx.wait_for_external_event("HumanApproval")
    if not answer["approved"]:
        raise RuntimeError("rejected")
    return "approved"


def child_that_asks(ctx: OrchestrationContext, _: Any) -> Any:
    answer = yield ctx.wait_for_external_event("HumanApproval")
    return answer["approved"]


def hang(_: ActivityContext, seconds: float) -> str:
    time.sleep(seconds)
    return "woke up"


def hangs(ctx: OrchestrationContext, seconds: float) -> Any:
    return (yield ctx.call_activity(hang, input=seconds))


def setup_worker(worker: Any) -> None:
    client = ScriptedChatClient(
        Rule(Reply(text="a calm text", usage={"input_token_count": 5, "output_token_count": 3}))
    )
    agents = DurableAIAgentWorker(worker)
    for workflow in (tone_workflow(client), gated_workflow(), nested_workflow(), scanned_workflow()):
        agents.configure_workflow(workflow)
    agents.add_agent(Agent(client=client, name="Greeter", instructions="greet"))
    agents.add_agent(
        Agent(
            client=ScriptedChatClient(lambda call: f"turn {call.turn}"), name="Counter", instructions="count"
        )
    )
    for orchestrator in (
        booking,
        wait_long,
        countdown,
        leaves_a_child,
        asks_a_child,
        asks_a_child_again,
        tries_a_child,
        child_that_insists,
        child_that_asks,
        hangs,
    ):
        worker.add_orchestrator(orchestrator)
    worker.add_activity(note)
    worker.add_activity(hang)


# An App, and one that dies at chosen points.

app = App("payments")


class Payment(BaseModel):
    amount: int


@app.activity
def pay(payment: Payment) -> str:
    return f"paid {payment.amount}"


@app.orchestration
def payment(run: RunHandle, request: Payment) -> Steps[str]:
    """Pay, once somebody who may has said so."""
    run.status({"asking": request.amount})
    decision = yield run.approval(
        title=f"Pay {request.amount}?", details=request, approvers=["ann"], timeout=timedelta(hours=1)
    )
    if not decision.approved:
        return f"refused: {decision.feedback}"
    return (yield run.activity(pay, request))


@app.activity
def charge_card(payment: Payment) -> str:
    """Dies with its process the first time."""
    _die_once("charging")
    return f"charged {payment.amount}"


@app.orchestration
def charge(run: RunHandle, request: Payment) -> Steps[str]:
    """Its first turn has nothing to say but that the run has started."""
    return (yield run.activity(charge_card, request))


def _die_once(moment: str) -> None:
    marker = Path(os.environ["WORKER_TEST_MARKERS"]) / moment
    if not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)


class _Crashing:
    """An outlet that kills its process once, before or after a turn has said something."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def send(self, turn: Turn, raise_event: Callable[..., None]) -> None:
        if turn.outbox:
            self._die("before", turn)
        self._inner.send(turn, raise_event)
        if turn.outbox:
            self._die("after", turn)

    async def deliver(self, turn: Turn, raise_event: Callable[..., Any]) -> None:
        if turn.outbox:
            self._die("before", turn)
        await self._inner.deliver(turn, raise_event)
        if turn.outbox:
            self._die("after", turn)

    def _die(self, moment: str, turn: Turn) -> None:
        _die_once(f"{moment}-{turn.instance_id}-{turn.position}")


def crashing(worker: Any) -> None:
    """Dies before and after every turn that says something, once each."""
    app(worker)
    worker.outlet = _Crashing(worker.outlet)
    # What is put off goes out with the next turn only: until then the process dies.
    beginnings.PATIENCE_S = 3600.0
