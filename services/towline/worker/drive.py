"""The drive loop: carries a run's own generator, step by step, through the SDK's orchestration executor.

The run's code yields a task; the loop waits for it together with the run's mail (decisions, notices of
children), its cancel and its deadlines, and deals with these whenever one of them comes first. Waiting
for more than one thing costs no history. Pure with respect to I/O: what is to be said goes into the
turn's outbox.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator
from typing import Any, TypeAlias, TypeVar, cast

from durabletask import task
from pydantic import BaseModel, ValidationError

from towline.contracts.durable import (
    CANCEL_EVENT,
    CHILD_ASK_EVENT,
    DECISION_EVENT,
    CancelCommand,
    ChildAsk,
    RaisedCommand,
    wrap_input,
)
from towline.worker import sdk
from towline.worker.asks import parts
from towline.worker.context import AgentTurnTask, RunContext
from towline.worker.errors import RunCancelled, RunCancelledError, WorkerError
from towline.worker.retries import RetriedTask

M = TypeVar("M", bound=BaseModel)
_log = logging.getLogger(__name__)

UserCode: TypeAlias = Generator[task.Task[Any], Any, Any]
_Step: TypeAlias = Callable[[UserCode], task.Task[Any]]


class Mailbox:
    """A standing wait for one kind of external event."""

    def __init__(self, context: task.OrchestrationContext, name: str) -> None:
        self._context = context
        self._name = name
        self._wait = context.wait_for_external_event(name)

    @property
    def wait(self) -> task.Task[Any]:
        """The task that completes when mail comes."""
        return self._wait

    def take(self) -> list[Any]:
        """All mail that has come; arms the wait again.

        Called by the drive loop only: a wait that is armed inside a completion callback is lost.
        """
        mail: list[Any] = []
        while self._wait.is_complete:
            mail.append(self._wait.get_result())
            sdk.release_wait(self._wait)
            self._wait = self._context.wait_for_external_event(self._name)
        return mail


def drive(context: RunContext, code: UserCode) -> Generator[task.Task[Any], Any, Any]:
    """Carry `code` to its end.

    Returns:
        What the code returns (nothing, if it continues as new).

    Raises:
        RunCancelledError: The run was cancelled and has compensated.
        Exception: Whatever the code raises.
    """
    return (yield from _Drive(context, code).run())


class _Drive:
    def __init__(self, context: RunContext, code: UserCode) -> None:
        self._context = context
        self._run = context.run
        self._asks = context.asks
        self._code = code
        self._decisions = Mailbox(self._run.native, DECISION_EVENT)
        self._notices = Mailbox(self._run.native, CHILD_ASK_EVENT)
        self._cancels = Mailbox(self._run.native, CANCEL_EVENT)

    def run(self) -> Generator[task.Task[Any], Any, Any]:
        step: _Step = next
        try:
            while True:
                yielded = self._carry_on(step)
                if self._continues:
                    self._code.close()
                    return self._continue_as_new()
                if not isinstance(cast("object", yielded), task.Task):
                    raise TypeError("The orchestrator generator yielded a non-Task object")
                step = yield from self._wait_for(yielded)
        except StopIteration as stopped:
            if self._continues:
                return self._continue_as_new()
            if self._run.cancel is not None:
                raise self._cancelled() from None
            return stopped.value
        except RunCancelled:
            raise self._cancelled() from None

    @property
    def _continues(self) -> bool:
        """Whether another generation follows. Not once the run is cancelled: that would undo the cancel."""
        return self._context.next_generation is not None and self._run.cancel is None

    def _carry_on(self, step: _Step) -> task.Task[Any]:
        try:
            return step(self._code)
        except BaseException as error:
            if isinstance(error, Exception | RunCancelled):
                raise
            # SystemExit may not end the host, nor CancelledError pass for a cancel of the host's own task:
            # either would leave the run without an outcome.
            raise WorkerError(f"the orchestration raised {type(error).__name__}") from error

    def _wait_for(self, yielded: task.Task[Any]) -> Generator[task.Task[Any], Any, _Step]:
        """Wait until `yielded` is complete or the run is cancelled; answer how the code goes on."""
        for part in list(parts(yielded)):
            sdk.complete_if_empty(part)
        self._asks.before_wait(yielded)
        while True:
            self._take_mail()
            if self._run.cancel is None and (cancels := self._read(self._cancels, CancelCommand)):
                command = cancels[0]
                self._run.cancelled(command)
                self._cancel_children()
                self._context.retries.give_up()
                signal = RunCancelled(command.reason)
                return lambda code: code.throw(signal)
            if yielded.is_complete:
                break
            yield task.when_any([yielded, *self._standing()])
        self._asks.after_wait(yielded)
        return self._resumption(yielded)

    def _standing(self) -> list[task.Task[Any]]:
        waits = [
            self._decisions.wait,
            self._notices.wait,
            *self._asks.timers(),
            *self._context.retries.tasks(),
        ]
        # Once cancelled, the run compensates undisturbed.
        return waits if self._run.cancel is not None else [*waits, self._cancels.wait]

    def _take_mail(self) -> None:
        self._asks.settle()
        self._context.retries.settle(self._context.retry_timer)
        for notice in self._read(self._notices, ChildAsk):
            self._asks.child_ask(notice)
        for command in self._read(self._decisions, RaisedCommand):
            self._asks.receive(command)

    def _read(self, mailbox: Mailbox, kind: type[M]) -> list[M]:
        """The mail that has come. What is none (anybody may raise events at the scheduler) is passed over."""
        mail: list[M] = []
        for data in mailbox.take():
            try:
                mail.append(kind.model_validate(data))
            except ValidationError:
                if not self._run.native.is_replaying:
                    _log.warning("mail_unreadable", exc_info=True, extra={"kind": kind.__name__})
        return mail

    def _resumption(self, yielded: task.Task[Any]) -> _Step:
        if yielded.is_failed:
            error = self._error_of(yielded)
            return lambda code: code.throw(error)
        try:
            value = yielded.get_result()
        except task.TaskCancelledError as cancelled:
            failure = cancelled
            return lambda code: code.throw(failure)
        return lambda code: code.send(value)

    def _error_of(self, failed: task.Task[Any]) -> Exception:
        """The error to raise: an agent's or an ask's own one, else the SDK's."""
        for part in parts(failed):
            if not part.is_failed:
                continue
            if isinstance(part, RetriedTask) and part.failed_attempt is not None:
                return self._error_of(part.failed_attempt)
            if isinstance(part, AgentTurnTask) and part.error is not None:
                return part.error
            error = self._asks.error_of(part)
            if error is not None:
                return error
        return failed.get_exception()

    def _cancel_children(self) -> None:
        """Cancel what this run has started and not finished.

        By an action of the turn and not by its outbox: a child that was started by the same turn doesn't
        exist before the turn is reported.
        """
        command = cast("CancelCommand", self._run.cancel).model_dump(mode="json")
        for instance_id in dict.fromkeys((*self._run.earlier_children, *self._running_children())):
            self._run.native.send_event(instance_id, CANCEL_EVENT, data=command)

    def _running_children(self) -> list[str]:
        return [instance_id for instance_id, child in self._context.children.items() if not child.is_complete]

    def _cancelled(self) -> RunCancelledError:
        cancel = self._run.cancel
        return RunCancelledError((cancel.reason if cancel is not None else None) or "cancelled")

    def _continue_as_new(self) -> None:
        following = self._context.next_generation
        assert following is not None
        self._take_mail()
        self._asks.close_generation()
        envelope = self._run.envelope.model_copy(
            update={"carried": self._run.carried(self._running_children())}
        )
        # Events are always saved, decisions on their way among them; the host drops the others afterwards
        # if the code does not want them.
        self._run.native.continue_as_new(
            wrap_input(envelope, following.new_input), save_events=True, new_version=following.new_version
        )
