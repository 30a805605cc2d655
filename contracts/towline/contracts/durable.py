"""What bridge and worker say to each other through the scheduler: the run's envelope and the commands.

Not part of the public wire contract, but durable all the same: a run started by one version is
finished by the next, so the rules of the contract (optional fields only) hold here too.
"""

from __future__ import annotations

from typing import Any, Final, Literal, cast

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, JsonValue

from towline.contracts.events import Name, RunId

ENVELOPE_KEY: Final = "$towline"
INPUT_KEY: Final = "input"

DECISION_EVENT: Final = "towline.decision"
"""External event by which the bridge hands a decision or a raised event to the run (`RaisedCommand`)."""
CANCEL_EVENT: Final = "towline.cancel"
"""External event by which the bridge asks a run to cancel itself (`CancelCommand`)."""
CHILD_ASK_EVENT: Final = "towline.ask"
"""External event by which a child orchestration tells its root run of an ask (`ChildAsk`)."""
CANCELLED_ERROR_TYPE: Final = "RunCancelledError"
"""Error type (last dotted part) of the failure in which a cancelled run's orchestration ends."""


class _Durable(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class RunEnvelope(_Durable):
    """What a run carries besides its input. Travels as ``{"$towline": {...}, "input": ...}``."""

    version: Literal[1] = 1
    run_id: RunId
    """The run as the world knows it: for a child orchestration that of its root."""
    run_type: Name
    role: Literal["run", "child"] = "run"
    request_id: str | None = None
    """CloudEvents id of the request."""
    fingerprint: str | None = None
    """Digest of the request's content; another request with this run id and other content is a conflict."""
    requested_at: AwareDatetime | None = None
    start_at: AwareDatetime | None = None
    """The scheduler starts it no earlier; a cancel before then needs no worker."""
    session_id: str | None = None
    requested_by: str | None = None
    tags: dict[str, str] | None = None
    traceparent: str | None = None
    tracestate: str | None = None
    carried: JsonValue = None
    """The host's own state, carried over continue-as-new."""


def wrap_input(envelope: RunEnvelope, run_input: Any) -> dict[str, Any]:
    """The orchestration input that carries `envelope` and the user's `run_input`."""
    return {ENVELOPE_KEY: envelope.model_dump(mode="json", exclude_none=True), INPUT_KEY: run_input}


def unwrap_input(value: Any) -> tuple[RunEnvelope | None, Any]:
    """Envelope and user's input; (None, value) for an orchestration that was not started by Towline."""
    if not isinstance(value, dict):
        return None, value
    fields = cast("dict[str, Any]", value)
    if ENVELOPE_KEY not in fields:
        return None, fields
    return RunEnvelope.model_validate(fields[ENVELOPE_KEY]), fields.get(INPUT_KEY)


class RaisedCommand(_Durable):
    """A decision (`approval.decided`) or raised event (`event.raised`) on its way into the run."""

    command_id: str
    """CloudEvents id of the command; its answer's event id ends in it. The book drops repeats."""
    kind: Literal["decision", "event"]
    name: Name
    """approval_id of a decision; name of a raised event."""
    approved: bool | None = None
    feedback: str | None = None
    approver: str | None = None
    digest: str | None = None
    data: JsonValue = None
    time: AwareDatetime | None = None
    """When it was published: an ask that had expired by then refuses it."""
    traceparent: str | None = None


class CancelCommand(_Durable):
    """A cancel on its way into the run."""

    command_id: str
    reason: str | None = None


class ChildAsk(_Durable):
    """A child's ask, made known to the root run so that it can route the decision."""

    approval_id: Name
    instance_id: str
    phase: Literal["requested", "resolved"] = Field(default="requested")
    name: Name | None = None
    """Name of the external event that also answers it."""
    answered: list[str] = Field(default_factory=list[str])
    """With `resolved`: ids of the commands that the child has answered."""
