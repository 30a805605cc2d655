"""What to do with a command, given what is known of its run. Pure: no I/O, no clock.

Requests:

| what is known | what is done |
|---|---|
| run type unknown, no app registered yet | wait for the grace, then reject |
| run type unknown | reject `unknown_run_type` |
| expired, or starts after it expires | reject `expired` |
| input too large or against its schema | reject `input_too_large`, `invalid_input` |
| otherwise | start |
| the run exists, same content | nothing |
| the run exists, other content | dead letter `run_id_conflict` |

Before a rejection the run is looked up: a repeat of a request that was accepted in its time is never
rejected later. Control commands: `CONTROL`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum, auto
from typing import Any, Final, Literal, TypeAlias

from towline.bridge.catalog import Catalog
from towline.contracts import ids
from towline.contracts.canonical import canonical_json, digest
from towline.contracts.durable import CancelCommand, RaisedCommand, RunEnvelope
from towline.contracts.events import (
    ApprovalDecided,
    ControlAction,
    ControlRefusal,
    ErrorInfo,
    Event,
    EventRaised,
    RunControl,
    RunRequested,
)

# -- requests ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Start:
    """Start the run."""

    run_type: str
    envelope: RunEnvelope
    run_input: Any
    start_at: datetime | None


@dataclass(frozen=True, slots=True)
class Reject:
    """Answer with `run.rejected`, unless the run exists."""

    error: ErrorInfo


@dataclass(frozen=True, slots=True)
class WaitForCatalog:
    """No app is registered yet: one may be about to."""


RequestDecision: TypeAlias = Start | Reject | WaitForCatalog


def fingerprint(request: RunRequested) -> str:
    """Digest of what makes two requests the same request."""
    return digest(
        {
            "run_type": request.run_type,
            "input": request.input,
            "session_id": request.session_id,
            "requested_by": request.requested_by,
            "start_at": _utc(request.start_at),
            "expires_at": _utc(request.expires_at),
            "tags": request.tags,
        }
    )


def decide_request(
    event: Event[RunRequested],
    catalog: Catalog,
    *,
    now: datetime,
    waited_s: float,
    run_type_grace_s: float,
    max_input_bytes: int,
) -> RequestDecision:
    """What to do with a request.

    Args:
        event: The request; its run_id is set.
        catalog: What the apps can run, caught up.
        now: The time.
        waited_s: How long this request has been waiting here.
        run_type_grace_s: How long to wait while no app is registered.
        max_input_bytes: Largest input, as JSON.
    """
    request = event.data
    offers = catalog.find(request.run_type)
    if offers is None:
        if catalog.empty and waited_s < run_type_grace_s:
            return WaitForCatalog()
        return Reject(_unknown_run_type(request.run_type, catalog))
    if problem := _expiry_problem(request, now):
        return Reject(ErrorInfo(type="expired", message=problem))
    size = len(canonical_json(request.input))
    if size > max_input_bytes:
        return Reject(
            ErrorInfo(
                type="input_too_large",
                message=f"input: has {size} bytes as JSON, at most {max_input_bytes} are taken: make it "
                "smaller, or set TOWLINE_PAYLOADS_URL and TOWLINE_BRIDGE_MAX_INPUT_BYTES for larger ones",
            )
        )
    if problems := offers.input_problems(request.input):
        return Reject(
            ErrorInfo(type="invalid_input", message="; ".join(problems), details={"problems": [*problems]})
        )
    return Start(request.run_type, _envelope(event), request.input, request.start_at)


def same_request(known: RunEnvelope | None, request: RunRequested) -> bool:
    """Whether an existing run was started by a request of the same content."""
    return known is not None and known.fingerprint == fingerprint(request)


def _envelope(event: Event[RunRequested]) -> RunEnvelope:
    request = event.data
    assert request.run_id is not None, "decode fills it in"
    return RunEnvelope(
        run_id=request.run_id,
        run_type=request.run_type,
        request_id=event.id,
        fingerprint=fingerprint(request),
        requested_at=event.time,
        start_at=request.start_at,
        session_id=request.session_id,
        requested_by=request.requested_by,
        tags=request.tags,
        traceparent=event.traceparent,
        tracestate=event.tracestate,
    )


def _expiry_problem(request: RunRequested, now: datetime) -> str | None:
    if request.expires_at is None:
        return None
    if request.expires_at <= now:
        return (
            f"expires_at: was {_utc(request.expires_at)}, now it is {_utc(now)}: ask again with a later one"
        )
    if request.start_at is not None and request.start_at > request.expires_at:
        return (
            f"start_at: {_utc(request.start_at)} is after expires_at {_utc(request.expires_at)}: "
            "let it start before it expires"
        )
    return None


def _unknown_run_type(run_type: str, catalog: Catalog) -> ErrorInfo:
    if catalog.empty:
        hint = "no app is registered: start a worker with `towline worker --app MODULE:ATTR`"
    else:
        known = catalog.closest(run_type)
        hint = f"registered are {', '.join(known)}" if known else "no app offers a run type"
    return ErrorInfo(
        type="unknown_run_type",
        message=f"run_type: {run_type!r} is offered by no registered app; {hint}",
    )


def _utc(moment: datetime | None) -> str | None:
    return None if moment is None else moment.astimezone(UTC).isoformat()


# -- control commands ----------------------------------------------------------------------------------

Standing: TypeAlias = Literal["unknown", "scheduled", "active", "suspended", "ended"]
"""Where a run is, as far as control commands care. scheduled: its start lies in the future."""


class ControlStep(Enum):
    """What to do with a control command."""

    WAIT = auto()
    """Its request may be on the way: try again, within the grace."""
    CANCEL = auto()
    """Raise the cancel, watch, terminate after the grace."""
    RESUME_AND_CANCEL = auto()
    """As CANCEL, but a suspended run takes no turn: resume it first."""
    TERMINATE = auto()
    """No code of it has run yet: nothing to compensate, no worker needed."""
    SUSPEND = auto()
    RESUME = auto()
    REFUSE = auto()
    """The run has ended, unless by this very command."""


Decision: TypeAlias = Event[ApprovalDecided] | Event[EventRaised]
"""What is handed to a run: a decision, or an event raised for it."""
UNKNOWN_RUN_POLL_S: Final = 1.0
"""Between two looks for a run that is not known yet."""
CONTROL: Final[Mapping[tuple[ControlAction, Standing], ControlStep]] = {
    ("cancel", "unknown"): ControlStep.WAIT,
    ("cancel", "scheduled"): ControlStep.TERMINATE,
    ("cancel", "active"): ControlStep.CANCEL,
    ("cancel", "suspended"): ControlStep.RESUME_AND_CANCEL,
    ("cancel", "ended"): ControlStep.REFUSE,
    ("suspend", "unknown"): ControlStep.WAIT,
    ("suspend", "scheduled"): ControlStep.SUSPEND,
    ("suspend", "active"): ControlStep.SUSPEND,
    ("suspend", "suspended"): ControlStep.SUSPEND,
    ("suspend", "ended"): ControlStep.REFUSE,
    ("resume", "unknown"): ControlStep.WAIT,
    ("resume", "scheduled"): ControlStep.RESUME,
    ("resume", "active"): ControlStep.RESUME,
    ("resume", "suspended"): ControlStep.RESUME,
    ("resume", "ended"): ControlStep.REFUSE,
}


def standing(phase: str | None, envelope: RunEnvelope | None, *, now: datetime) -> Standing:
    """Where a run of this phase is; None: the scheduler does not know it.

    An orchestration without envelope, or a run's child, is no run of ours: nobody who can publish commands
    gets power over it by its id.
    """
    if phase is None or envelope is None or envelope.role != "run":
        return "unknown"
    match phase:
        case "pending" if envelope.start_at is not None and envelope.start_at > now:
            return "scheduled"
        case "pending" | "running":
            return "active"
        case "suspended":
            return "suspended"
        case _:
            return "ended"


def refusal(was: Standing) -> ControlRefusal:
    """The reason to give for a control command that came to nothing."""
    return "unknown_run" if was == "unknown" else "already_finished"


# -- decisions and raised events -----------------------------------------------------------------------


def raised_command(event: Decision) -> RaisedCommand:
    """A decision or raised event as the run's book of asks takes it."""
    data = event.data
    if isinstance(data, EventRaised):
        return RaisedCommand(
            command_id=event.id,
            kind="event",
            name=data.name,
            data=data.data,
            time=event.time,
            traceparent=event.traceparent,
        )
    return RaisedCommand(
        command_id=event.id,
        kind="decision",
        name=data.approval_id,
        approved=data.approved,
        feedback=data.feedback,
        approver=data.approver,
        digest=data.digest,
        data=data.data,
        time=event.time,
        traceparent=event.traceparent,
    )


def cancel_command(event_id: str, reason: str | None) -> CancelCommand:
    """A cancel as the run takes it."""
    return CancelCommand(command_id=event_id, reason=reason)


# -- answers that were given before --------------------------------------------------------------------


REQUEST_ID: Final = "requestid"
"""CloudEvents attribute of a rejection: the id of the request that it answers. Its own id is the run's."""


def rejection_of(outcome_id: str, request_id: str) -> str:
    """Names the rejection of that very request."""
    return f"{outcome_id} {request_id}"


def answer_ids(event: Event) -> tuple[str, ...]:
    """Ids of the events by which the bridge may have answered this command; once is enough."""
    match event.data:
        case RunRequested(run_id=str(run_id)):
            # A rejection; runs that started are known to the scheduler.
            return (ids.outcome_id(run_id),)
        case RunControl(run_id=run_id, action=action):
            return (
                ids.control_refused_id(run_id, action, event.id),
                ids.control_done_id(run_id, action, event.id),
            )
        case ApprovalDecided(run_id=run_id, approval_id=name) | EventRaised(run_id=run_id, name=name):
            return (
                ids.approval_refused_id(run_id, name, event.id),
                ids.approval_resolved_id(run_id, name, event.id),
            )
        case _:
            return ()


# -- ends that no worker has told of -------------------------------------------------------------------

_TERMINATION_KEY: Final = "$towline_cancel"


def termination_output(command_id: str, reason: str | None) -> dict[str, Any]:
    """Output of a run that the bridge terminates: tells later on by which command, and why."""
    return {_TERMINATION_KEY: {"command_id": command_id, "reason": reason}}


def terminated_by(output: Any) -> CancelCommand | None:
    """The cancel command that made the bridge terminate a run with this output."""
    match output:
        case {"$towline_cancel": {"command_id": str(command_id), "reason": str() | None as reason}}:
            return CancelCommand(command_id=command_id, reason=reason)
        case _:
            return None
