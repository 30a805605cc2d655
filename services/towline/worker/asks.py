"""Between the book and the run: the tasks that the run's code waits for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, cast

from durabletask import task

from towline.contracts.canonical import approval_digest
from towline.contracts.durable import DECISION_EVENT, ChildAsk, RaisedCommand
from towline.contracts.events import NAME_CHARS_MAX, ApprovalRequested, is_name
from towline.worker import sdk
from towline.worker.ask_model import AskSpec, Deliver, Effect, Forward, Refused, Resolved, approves
from towline.worker.errors import ApprovalExpired
from towline.worker.halves import mended
from towline.worker.run import Run, utc


@dataclass(slots=True, kw_only=True)
class Announcement:
    """What the world is told of an ask."""

    title: str | None = None
    details: Any = None
    approvers: tuple[str, ...] | None = None
    expires_at: datetime | None = None
    digest: str = ""

    def __post_init__(self) -> None:
        # Before the digest is taken: it is that of what is shown.
        self.title, self.details = mended(self.title), mended(self.details)
        self.digest = approval_digest(title=self.title, details=self.details)


@dataclass(slots=True)
class _Wait:
    """A task of the run's code that an ask completes."""

    approval_id: str
    name: str
    task: task.CancellableTask[Any]
    shape: Callable[[Deliver], Any]
    announcement: Announcement
    detach: Callable[[], None] | None = None
    timer: task.TimerTask | None = None
    escalation: task.TimerTask | None = None
    escalate: Callable[[], Announcement] | None = None
    announced: bool = False
    requested_at: datetime | None = None
    decided_in: tuple[str, ...] = ()


def event_data(delivered: Deliver) -> Any:
    """What a plain wait for an external event gets: a decision as a dict, a raised event as it is."""
    command = delivered.command
    if command.kind == "event":
        return command.data
    more = command.data if isinstance(command.data, dict) else {}
    # The decision's own fields win: who approved what is not for `data` to say.
    return {
        **more,
        "approved": command.approved,
        "feedback": command.feedback or "",
        "approver": command.approver,
    }


def parts(yielded: task.Task[Any]) -> Iterator[task.Task[Any]]:
    """`yielded` and all tasks that it is composed of."""
    yield yielded
    if isinstance(yielded, task.CompositeTask):
        for part in yielded.get_tasks():
            yield from parts(part)


class Asks:
    """All waits of one run for the world outside, opened, answered and closed in step with the book."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._book = run.book
        self._waits: dict[str, _Wait] = {}
        """Those whose asks are not resolved."""
        self._errors: list[tuple[task.Task[Any], Exception]] = []
        self._fire_times: dict[int, tuple[task.TimerTask, datetime]] = {}

    # What the run's code does.

    def wait_for_event(
        self,
        name: str,
        data_type: type | None = None,
        *,
        announcement: Announcement | None = None,
        shape: Callable[[Deliver], Any] = event_data,
    ) -> task.CancellableTask[Any]:
        """A wait for an external event: announced as an ask, answered by a decision or the event."""
        approval_id = self._approval_id(name)
        native = self._run.native.wait_for_external_event(name, data_type=cast("Any", data_type))
        coerce = self._run.converter.coerce
        wait = _Wait(
            approval_id=approval_id,
            name=name,
            task=native,
            shape=lambda delivered: coerce(shape(delivered), data_type),
            announcement=announcement or Announcement(),
            detach=sdk.cancel_handler(native),
        )
        # No deadline: when the wait is over is for the run's own timer to say.
        self._open(wait, AskSpec(approval_id=wait.approval_id, name=name, digest=wait.announcement.digest))
        return native

    def approval(
        self,
        name: str,
        announcement: Announcement,
        *,
        quorum: int,
        timeout: timedelta | None,
        escalate_after: timedelta | None,
        escalate_to: tuple[str, ...],
        shape: Callable[[Deliver], Any],
    ) -> task.CancellableTask[Any]:
        """An ask of its own, with a deadline that the host keeps."""
        wait = _Wait(
            approval_id=self._approval_id(name),
            name=name,
            task=task.CancellableTask(),
            shape=shape,
            announcement=announcement,
        )
        if timeout is not None:
            wait.timer = self._run.native.create_timer(timeout)
            announcement.expires_at = self._run.now + timeout
        if escalate_after is not None:
            wait.escalation = self._run.native.create_timer(escalate_after)
            wait.escalate = lambda: Announcement(
                title=announcement.title,
                details=announcement.details,
                expires_at=announcement.expires_at,
                approvers=(*(announcement.approvers or ()), *escalate_to),
            )
        approvers = None if announcement.approvers is None else frozenset(announcement.approvers)
        spec = AskSpec(
            approval_id=wait.approval_id,
            name=name,
            digest=announcement.digest,
            deadline=announcement.expires_at,
            approvers=approvers,
            quorum=quorum,
        )
        self._open(wait, spec)
        return wait.task

    def timer_created(self, timer: task.TimerTask, fire_at: datetime | timedelta) -> None:
        """Remember when a timer of the run's code fires, to announce it as the deadline of an ask."""
        moment = self._run.now + fire_at if isinstance(fire_at, timedelta) else utc(fire_at)
        self._fire_times[id(timer)] = (timer, moment)

    # What the drive loop does.

    def before_wait(self, yielded: task.Task[Any]) -> None:
        """The run's code is going to wait for `yielded`."""
        waited = {id(part) for part in parts(yielded)}
        deadline = self._race_deadline(yielded)
        for wait in list(self._waits.values()):
            if id(wait.task) not in waited:
                continue
            if not wait.announced and wait.announcement.expires_at is None:
                wait.announcement.expires_at = deadline
            self._apply(self._book.revive(wait.approval_id))
        self.announce()

    def after_wait(self, yielded: task.Task[Any]) -> None:
        """`yielded` is complete: asks that lost a race against a timer have lapsed."""
        for race in parts(yielded):
            if not isinstance(race, task.WhenAnyTask) or not race.is_complete:
                continue
            if not isinstance(cast("Any", race.get_result()), task.TimerTask):
                continue
            lost = {id(part) for part in parts(cast("task.Task[Any]", race))}
            for wait in self._waits.values():
                if id(wait.task) in lost and not wait.task.is_complete:
                    self._apply(self._book.lapse(wait.approval_id))

    def timers(self) -> list[task.Task[Any]]:
        """Deadlines that the host keeps, to be waited for beside what the run waits for."""
        timers = [t for wait in self._waits.values() for t in (wait.timer, wait.escalation)]
        return [timer for timer in timers if timer is not None and not timer.is_complete]

    def settle(self) -> None:
        """Take note of what happened outside the book: native events, deadlines."""
        for wait in list(self._waits.values()):
            if wait.approval_id not in self._waits:
                continue
            if wait.task.is_complete:
                self._answered_natively(wait)
            elif wait.timer is not None and wait.timer.is_complete:
                self._apply(self._book.expire(wait.approval_id))
                self._fail(wait, ApprovalExpired(wait.approval_id))
            elif wait.escalation is not None and wait.escalation.is_complete:
                self._escalate(wait)

    def receive(self, command: RaisedCommand) -> None:
        """A decision or raised event has come."""
        self._apply(self._book.receive(command))

    def child_ask(self, notice: ChildAsk) -> None:
        """A child asks, or its ask has ended."""
        self._apply(self._book.child_ask(notice))

    def error_of(self, failed: task.Task[Any]) -> Exception | None:
        """The error that an ask failed with, if `failed` is one of the run's asks."""
        return next((error for of, error in self._errors if of is failed), None)

    def announce(self) -> None:
        """Announce asks that were opened since; done when the run waits, so that deadlines are known."""
        for wait in self._waits.values():
            if not wait.announced:
                wait.announced = True
                self._request(wait, wait.announcement)

    def close(self) -> None:
        """The run has ended."""
        self.announce()
        self._apply(self._book.close())

    def close_generation(self) -> None:
        """The run continues as new."""
        self.announce()
        self._apply(self._book.close_generation())

    # Inside.

    def _approval_id(self, name: str) -> str:
        approval_id = self._run.qualify(self._book.name_ask(name))
        if not is_name(name) or not is_name(approval_id):
            raise ValueError(
                f"{approval_id!r} can't name an approval or event: "
                f"use 1 to {NAME_CHARS_MAX} characters without control characters (line breaks, tabs)"
            )
        return approval_id

    def _open(self, wait: _Wait, spec: AskSpec) -> None:
        self._waits[wait.approval_id] = wait
        if wait.task.is_complete:
            # A native event was there already.
            self._apply(self._book.open(spec, answered=True))
            self._answered_natively(wait)
            return
        wait.task.set_cancel_handler(lambda: self._given_up(wait))
        self._apply(self._book.open(spec))

    def _given_up(self, wait: _Wait) -> None:
        if wait.detach is not None:
            wait.detach()
        self._stop_timers(wait)
        self._apply(self._book.cancel(wait.approval_id))

    def _answered_natively(self, wait: _Wait) -> None:
        if wait.task.is_cancelled or wait.task.is_failed:
            return
        data = wait.task.get_result()
        as_command = RaisedCommand(command_id="", kind="event", name=wait.name, data=_json_or_none(data))
        self._apply(self._book.answered(wait.approval_id, approved=approves(as_command)))

    def _apply(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Deliver():
                    self._deliver(effect)
                case Resolved():
                    self._resolved(effect, effects)
                case Refused():
                    self._run.refused(effect)
                case Forward():
                    self._run.raise_on(
                        effect.instance_id, DECISION_EVENT, effect.command.model_dump(mode="json")
                    )

    def _deliver(self, delivered: Deliver) -> None:
        wait = self._waits[delivered.approval_id]
        wait.decided_in = tuple(vote.traceparent for vote in delivered.votes if vote.traceparent)
        self._stop_timers(wait)
        if wait.detach is not None:
            wait.detach()  # So that the next native event goes to the next wait.
        try:
            value = wait.shape(delivered)
        except Exception as error:  # noqa: BLE001 — the user's type; the decision is to be answered all the same
            self._fail(wait, error)
        else:
            wait.task.complete(value)

    def _resolved(self, effect: Resolved, together_with: list[Effect]) -> None:
        wait = self._waits.pop(effect.approval_id, None)
        if wait is not None:
            if not wait.announced:
                wait.announced = True
                self._request(wait, wait.announcement)
            if effect.outcome == "expired" and wait.detach is not None and not wait.task.is_complete:
                # An abandoned wait would take the next event of its name from the wait that follows it.
                wait.detach()
            self._stop_timers(wait)
            if wait.requested_at is not None:
                self._run.waited(effect, wait.requested_at, wait.decided_in)
            if wait.task.is_complete:
                sdk.release_wait(wait.task)
        answered = [
            other.command_id
            for other in together_with
            if isinstance(other, Resolved)
            and other.approval_id == effect.approval_id
            and other.command_id is not None
        ]
        # Told once, by the first of the events that answer the votes.
        self._run.resolved(effect, None if wait is None else answered)

    def _request(self, wait: _Wait, announcement: Announcement, *, suffix: str = "") -> None:
        wait.requested_at = wait.requested_at or self._run.now
        self._run.requested(
            ApprovalRequested(
                run_id=self._run.envelope.run_id,
                approval_id=wait.approval_id,
                title=announcement.title,
                details=announcement.details,
                digest=announcement.digest,
                expires_at=announcement.expires_at,
                approvers=None if announcement.approvers is None else list(announcement.approvers),
            ),
            wait.name,
            suffix=suffix,
        )

    def _escalate(self, wait: _Wait) -> None:
        if wait.escalate is None:
            return
        announcement = wait.escalate()
        wait.escalation = wait.escalate = None
        self._book.escalate(wait.approval_id, frozenset(announcement.approvers or ()))
        self._request(wait, announcement, suffix="/escalated")

    def _fail(self, wait: _Wait, error: Exception) -> None:
        self._errors.append((wait.task, error))
        wait.task.fail(str(error), error)
        sdk.release_wait(wait.task)

    @staticmethod
    def _stop_timers(wait: _Wait) -> None:
        for timer in (wait.timer, wait.escalation):
            if timer is not None and not timer.is_complete:
                timer.cancel()

    def _race_deadline(self, yielded: task.Task[Any]) -> datetime | None:
        """When the timer fires against which `yielded` races its asks."""
        if not isinstance(yielded, task.WhenAnyTask):
            return None
        moments = [
            self._fire_times[id(part)][1]
            for part in cast("task.WhenAnyTask[Any]", yielded).get_tasks()
            if id(part) in self._fire_times
        ]
        return min(moments, default=None)


def _json_or_none(data: Any) -> Any:
    return cast("Any", data) if isinstance(data, str | int | float | bool | list | dict) else None
