"""What an `App`'s orchestration does with its run: agents, activities, approvals, status, time."""

from __future__ import annotations

import typing
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, TypeVar, overload

from agent_framework import AgentResponse
from agent_framework_durabletask import (
    AgentSessionId,
    DurableAgentSession,
    DurableAIAgentOrchestrationContext,
)
from durabletask import task
from pydantic import BaseModel, ConfigDict, JsonValue, TypeAdapter
from pydantic_core import to_jsonable_python

from towline.worker.ask_model import Deliver
from towline.worker.asks import Announcement
from towline.worker.context import RunContext
from towline.worker.retries import AgentRetry

T = TypeVar("T")


class Vote(BaseModel):
    """One approver's decision."""

    model_config = ConfigDict(frozen=True)

    approved: bool
    approver: str | None = None
    feedback: str | None = None


class ApprovalDecision(BaseModel):
    """How an approval was decided."""

    model_config = ConfigDict(frozen=True)

    approval_id: str
    approved: bool
    approver: str | None = None
    feedback: str | None = None
    data: JsonValue = None
    votes: list[Vote] = []
    """All decisions that counted, in order: more than one where a quorum was asked for."""


class TypedTask(task.CompositeTask[T], task.CancellableTask[T]):
    """A task whose result is validated on its way to the run's code. To be cancelled like its inner one."""

    def __init__(self, inner: task.Task[Any], adapter: TypeAdapter[Any]) -> None:
        self._adapter = adapter
        super().__init__([inner])

    def on_child_completed(self, task: task.Task[Any]) -> None:
        """Take the result over."""
        if self.is_complete:
            return
        if _is_cancelled(task):
            self._is_cancelled = self._is_complete = True
            self._notify_parent()
            return
        if task.is_failed:
            # Kept as it is, so that the code sees the failure of the activity and not one of this task.
            self._exception = task.get_exception()
            self._is_complete = True
            self._notify_parent()
            return
        try:
            value = self._adapter.validate_python(task.get_result())
        except ValueError as error:
            self.fail(str(error), error)
        else:
            self.complete(value)

    def cancel(self) -> bool:
        """Give the wait up: what comes for it goes to the next one. False if it is over already."""
        inner = self.get_tasks()[0]
        return isinstance(inner, task.CancellableTask) and inner.cancel()


def _is_cancelled(of: task.Task[Any]) -> bool:
    return isinstance(of, task.CancellableTask) and of.is_cancelled


class RunHandle:
    """The run, for the code of its orchestration. What returns a task must be yielded.

    The code is executed again and again over the run's history: it must be deterministic. Time, ids and
    everything from outside come from here; see docs/guide/apps.md.
    """

    def __init__(self, context: RunContext, *, approvers: tuple[str, ...] | None = None) -> None:
        self.context = context
        """The durabletask context, for all that this handle does not cover."""
        self._approvers = approvers
        self._agents = DurableAIAgentOrchestrationContext(context)

    @property
    def id(self) -> str:
        """The run's id."""
        return self.context.run.envelope.run_id

    @property
    def session_id(self) -> str | None:
        """The session that the request named."""
        return self.context.run.envelope.session_id

    @property
    def requested_by(self) -> str | None:
        """Who asked for the run."""
        return self.context.run.envelope.requested_by

    @property
    def tags(self) -> Mapping[str, str]:
        """The request's tags."""
        return self.context.run.envelope.tags or {}

    @property
    def now(self) -> datetime:
        """The run's time, UTC: the same in every replay."""
        return self.context.run.now

    def agent(
        self,
        name: str,
        message: str,
        *,
        session: str | None = None,
        response_format: type[BaseModel] | None = None,
        options: Mapping[str, Any] | None = None,
        retry: AgentRetry | None = None,
    ) -> task.Task[AgentResponse]:
        """Call an agent. The task gives its response, ``.text`` and ``.value``.

        Args:
            name: The agent's name.
            message: What to say to it.
            session: Calls with the same key continue one conversation (any text without @); else a new one.
            response_format: A model, importable by its module and name, that the answer must fit: `.value`.
            options: Further options of the agent's `run`.
            retry: Try again when the agent fails; default: not.

        Raises:
            AgentRunError: The agent failed (as often as `retry` allows). Raised where the task is yielded.
            ValueError: `session` is empty or has an ``@``.
        """
        if session is not None and (not session or "@" in session):
            raise ValueError(
                f"session {session!r} of agent {name}: give it a text without @ that is not empty"
            )
        chosen = dict(options or {})
        if response_format is not None:
            chosen["response_format"] = response_format
        proxy = self._agents.get_agent(name)
        turn = self.context.run.next_agent_turn()

        def start() -> task.Task[AgentResponse]:
            # Without a session each attempt has a conversation of its own: a failed one leaves no trace.
            key = None if session is None else AgentSessionId(name=name, key=session)
            conversation = None if key is None else DurableAgentSession(durable_session_id=key)
            with self.context.calling_turn(turn):
                return proxy.run(message, session=conversation, options=dict(chosen))

        return start() if retry is None else self.context.retries.call(start, retry, turn)

    @overload
    def activity(
        self, activity: Callable[..., T], value: Any = None, *, retry: task.RetryPolicy | None = None
    ) -> task.Task[T]: ...
    @overload
    def activity(
        self, activity: str, value: Any = None, *, retry: task.RetryPolicy | None = None
    ) -> task.Task[Any]: ...

    def activity(
        self,
        activity: Callable[..., Any] | str,
        value: Any = None,
        *,
        retry: task.RetryPolicy | None = None,
    ) -> task.Task[Any]:
        """Call an activity with `value`. Its result is validated against its return annotation.

        Raises:
            TaskFailedError: It raised (as often as `retry` allows). Raised where the task is yielded.
        """
        name = activity if isinstance(activity, str) else activity.__name__
        call = self.context.call_activity(name, input=to_jsonable_python(value), retry_policy=retry)
        if isinstance(activity, str):
            return call
        annotation = typing.get_type_hints(activity).get("return", Any)
        return call if annotation is Any else TypedTask(call, TypeAdapter(annotation))

    def child(
        self,
        orchestration: Callable[..., Any] | str,
        value: Any = None,
        *,
        retry: task.RetryPolicy | None = None,
    ) -> task.Task[Any]:
        """Run another orchestration as a part of this run; its asks are asks of this run."""
        if isinstance(orchestration, str):
            name = orchestration
        else:
            name = getattr(orchestration, "__towline_run_type__", orchestration.__name__)
        return self.context.call_sub_orchestrator(name, input=to_jsonable_python(value), retry_policy=retry)

    def approval(
        self,
        *,
        title: str,
        details: Any = None,
        name: str = "approval",
        timeout: timedelta | None = None,
        approvers: Sequence[str] | None = None,
        quorum: int = 1,
        escalate_after: timedelta | None = None,
        escalate_to: Sequence[str] = (),
    ) -> task.CancellableTask[ApprovalDecision]:
        """Ask people to decide. Announced at once; the task gives an `ApprovalDecision`.

        Args:
            title: What is to be decided, in a few words.
            details: All that is needed to decide, JSON or a model.
            name: The approval's id; further ones of that name are ``name~2``, ``name~3``.
            timeout: Nobody decided for so long: `ApprovalExpired`. Default: it waits for ever.
            approvers: Who may decide; default: those of the run type, else anyone.
            quorum: Approvals by different approvers that are needed. One rejection rejects.
            escalate_after: Nobody decided for so long: `escalate_to` may decide too, and is announced.
            escalate_to: Further approvers.

        Raises:
            ApprovalExpired: Nobody decided within `timeout`. Raised where the task is yielded.
            ValueError: The quorum can't be reached, or there is nobody to escalate to.
            TypeError: `approvers` or `escalate_to` is one text.
        """
        if escalate_after is not None and not escalate_to:
            raise ValueError(f"approval {name}: escalate_after needs escalate_to")
        chosen = self._approvers if approvers is None else several("approvers", approvers)
        announcement = Announcement(title=title, details=to_jsonable_python(details), approvers=chosen)
        return self.context.asks.approval(
            name,
            announcement,
            quorum=quorum,
            timeout=timeout,
            escalate_after=escalate_after,
            escalate_to=several("escalate_to", escalate_to),
            shape=_decision,
        )

    def event(self, name: str, kind: Any = Any) -> task.CancellableTask[Any]:
        """Wait for an external event (``event.raised``), validated against `kind`."""
        wait = self.context.wait_for_external_event(name)
        return wait if kind is Any else TypedTask(wait, TypeAdapter(kind))

    def sleep(self, delay: timedelta | datetime) -> task.TimerTask:
        """Wait for so long, or until then. Costs nothing meanwhile."""
        return self.context.create_timer(delay)

    def all(self, tasks: Sequence[task.Task[T]]) -> task.Task[list[T]]:
        """Wait for all of them; gives their results in order."""
        return task.when_all(list(tasks))

    def any(self, tasks: Sequence[task.Task[Any]]) -> task.Task[task.Task[Any]]:
        """Wait for the first of them; gives that task. Cancel losers (events, approvals, timers)."""
        return task.when_any(list(tasks))

    def status(self, status: Any) -> None:
        """Tell how far the run is: published as ``run.progressed``."""
        self.context.set_custom_status(to_jsonable_python(status))

    def new_id(self) -> str:
        """A UUID that is the same in every replay."""
        return self.context.new_uuid()

    def continue_as_new(self, value: Any, *, keep_events: bool = True) -> None:
        """Start over with `value` as input once the code returns: for runs without end."""
        self.context.continue_as_new(to_jsonable_python(value), save_events=keep_events)


def several(what: str, names: Sequence[str]) -> tuple[str, ...]:
    """The names of people, given as a list.

    Raises:
        TypeError: It is one text, which Python takes for a list of letters: nobody could decide.
    """
    if isinstance(names, str):
        raise TypeError(f"{what}: {names!r} is one text: give a list, [{names!r}]")
    return tuple(names)


def _decision(delivered: Deliver) -> ApprovalDecision:
    command = delivered.command
    return ApprovalDecision(
        approval_id=delivered.approval_id,
        approved=delivered.approved,
        approver=command.approver,
        feedback=command.feedback,
        data=command.data,
        votes=[
            Vote(
                approved=bool(vote.approved) if vote.kind == "decision" else delivered.approved,
                approver=vote.approver,
                feedback=vote.feedback,
            )
            for vote in delivered.votes
        ],
    )
