"""The events of the wire contract, version 1 (docs/wire-contract.md).

Each model is the *data* of one event type; what travels around it (id, source, time, trace context)
is `Event`. Models are strict: a string is never taken for a boolean, nor a number for a string; NaN
and Infinity, which JSON cannot carry, are refused. Times are RFC 3339 with an offset. Unknown fields
are ignored, so that a later minor version can add optional ones.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, ClassVar, Final, Generic, Literal, TypeAlias

from pydantic import (
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    StringConstraints,
    TypeAdapter,
    ValidationError,
)
from pydantic_core import PydanticCustomError
from typing_extensions import TypeVar

RUN_ID_PATTERN: Final = r"^[A-Za-z0-9._:\-]{1,128}$"
"""What a run id may be; it is also the orchestration's instance id and part of Redis keys."""

NAME_PATTERN: Final = r"^[^\u0000-\u001f\u007f-\u009f]+$"
"""Names become part of event ids, and CloudEvents allows no control characters there."""

NAME_CHARS_MAX: Final = 256
"""Longest name, in characters."""

_RUN_ID: Final = re.compile(r"[A-Za-z0-9._:\-]{1,128}")
_RFC3339: Final = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)", re.ASCII)

_SECONDS: Final = slice(17, 19)
"""Where they are in such a text."""


def is_run_id(value: str) -> bool:
    """Whether `value` may name a run."""
    return _RUN_ID.fullmatch(value) is not None


def parse_time(text: str) -> datetime:
    """The time that `text` writes as RFC 3339, in UTC; fractions beyond microseconds are cut off.

    A leap second is the second after it, as in Unix time.

    Raises:
        ValueError: Another format, no offset, or no such time.
    """
    if _RFC3339.fullmatch(text) is None:
        raise ValueError("must be RFC 3339 with an offset, like 2026-11-24T20:00:00Z")
    try:
        return _in_utc(text)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"is no time that exists ({error}): send one like 2026-11-24T20:00:00Z") from error


def _in_utc(text: str) -> datetime:
    if text[_SECONDS] != "60":
        return datetime.fromisoformat(text.upper()).astimezone(UTC)
    before = _in_utc(f"{text[: _SECONDS.start]}59{text[_SECONDS.stop :]}")
    if (before.hour, before.minute) != (23, 59):
        raise ValueError("no minute but the last of a day in UTC has 61 seconds")
    return before + timedelta(seconds=1)


def _time_from_text(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return parse_time(value)
    except ValueError as error:
        raise PydanticCustomError("rfc3339", "{problem}", {"problem": str(error)}) from error


Timestamp: TypeAlias = Annotated[AwareDatetime, BeforeValidator(_time_from_text)]
RunId: TypeAlias = Annotated[str, StringConstraints(pattern=RUN_ID_PATTERN)]
Name: TypeAlias = Annotated[
    str, StringConstraints(min_length=1, max_length=NAME_CHARS_MAX, pattern=NAME_PATTERN)
]
Tags: TypeAlias = dict[str, str]

TopicName: TypeAlias = Literal["runs", "approvals", "events", "results", "catalog", "dead-letters"]
ControlAction: TypeAlias = Literal["cancel", "suspend", "resume"]
ApprovalOutcome: TypeAlias = Literal["approved", "rejected", "expired", "cancelled"]
ApprovalRefusal: TypeAlias = Literal[
    "unknown_run",
    "run_finished",
    "unknown_approval",
    "already_resolved",
    "expired",
    "not_authorized",
    "stale",
]
ControlRefusal: TypeAlias = Literal["unknown_run", "already_finished", "not_supported"]


_NAME: Final = TypeAdapter[str](Name)


def is_name(value: str) -> bool:
    """Whether `value` may name a run type, an approval or an event."""
    try:
        _NAME.validate_python(value)
    except ValidationError:
        return False
    return True


class ContractModel(BaseModel):
    """Base of all that is on the wire: strict, immutable, tolerant of fields that it does not know."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore", allow_inf_nan=False)


class EventData(ContractModel):
    """Base of the data of all events."""

    event_type: ClassVar[str]
    """The CloudEvents type, for example ``towline.run.requested.v1``."""
    topic: ClassVar[TopicName]
    """The topic (without prefix) that carries it."""
    always_written: ClassVar[frozenset[str]] = frozenset()
    """Fields that are written also when they are null; other fields that are null are left out."""


class ErrorInfo(ContractModel):
    """What went wrong, for programs (`type`) and for people (`message`)."""

    type: str = Field(description="Stable name of the kind of error, usually an exception class.")
    message: str = Field(description="What happened and, where known, what to do about it.")
    details: JsonValue = Field(default=None, description="Anything else that helps, as JSON.")


class Usage(ContractModel):
    """Tokens used by all agent turns of a run, as far as the models reported them."""

    input_tokens: int | None = Field(default=None, ge=0)
    output_tokens: int | None = Field(default=None, ge=0)
    total_tokens: int | None = Field(default=None, ge=0)


class RunRequested(EventData):
    """Asks for a run. Without `run_id` the CloudEvent's id names the run."""

    event_type: ClassVar[str] = "towline.run.requested.v1"
    topic: ClassVar[TopicName] = "runs"

    run_id: RunId | None = Field(default=None, description="Names the run; the same id starts one run only.")
    run_type: Name = Field(description="An orchestration, workflow or agent.<Name> of a registered app.")
    input: JsonValue = Field(default=None, description="The run's input; its schema is in the catalog.")
    session_id: RunId | None = Field(
        default=None, description="Runs of one session continue one conversation."
    )
    requested_by: str | None = Field(default=None, description="Who asks, for the record.")
    start_at: Timestamp | None = Field(default=None, description="Not to start before this time.")
    expires_at: Timestamp | None = Field(
        default=None, description="Rejected when it could not be started by then."
    )
    tags: Tags | None = Field(default=None, description="For filters and dashboards.")


class RunControl(EventData):
    """Cancels, suspends or resumes a run."""

    event_type: ClassVar[str] = "towline.run.control.v1"
    topic: ClassVar[TopicName] = "runs"

    run_id: RunId
    action: ControlAction
    reason: str | None = None


class ApprovalDecided(EventData):
    """A person's or a service's answer to one approval request."""

    event_type: ClassVar[str] = "towline.approval.decided.v1"
    topic: ClassVar[TopicName] = "approvals"

    run_id: RunId
    approval_id: Name
    approved: bool
    feedback: str | None = None
    data: dict[str, JsonValue] | None = Field(
        default=None, description="More fields for the run, merged into what it receives."
    )
    approver: str | None = None
    digest: str | None = Field(
        default=None, description="The request's digest; another one is refused as stale."
    )


class EventRaised(EventData):
    """Any other external event, delivered to the run's wait of that name as it is."""

    event_type: ClassVar[str] = "towline.event.raised.v1"
    topic: ClassVar[TopicName] = "approvals"

    run_id: RunId
    name: Name
    data: JsonValue = None


class RunStarted(EventData):
    """The run's first turn is being taken."""

    event_type: ClassVar[str] = "towline.run.started.v1"
    topic: ClassVar[TopicName] = "events"

    run_id: RunId
    run_type: Name
    session_id: str | None = None
    tags: Tags | None = None


class RunProgressed(EventData):
    """The run has set its custom status."""

    event_type: ClassVar[str] = "towline.run.progressed.v1"
    topic: ClassVar[TopicName] = "events"
    always_written: ClassVar[frozenset[str]] = frozenset({"status"})

    run_id: RunId
    status: JsonValue = None


class ApprovalRequested(EventData):
    """The run waits for somebody's decision."""

    event_type: ClassVar[str] = "towline.approval.requested.v1"
    topic: ClassVar[TopicName] = "events"

    run_id: RunId
    approval_id: Name
    title: str | None = None
    details: JsonValue = None
    digest: str | None = Field(
        default=None, description="SHA-256 of the canonical JSON of what is shown (title and details)."
    )
    expires_at: Timestamp | None = None
    approvers: list[str] | None = Field(default=None, description="Who may decide; absent: anyone.")


class ApprovalResolved(EventData):
    """An approval request has come to its end."""

    event_type: ClassVar[str] = "towline.approval.resolved.v1"
    topic: ClassVar[TopicName] = "events"

    run_id: RunId
    approval_id: Name
    outcome: ApprovalOutcome
    approver: str | None = None
    feedback: str | None = None


class ApprovalRefused(EventData):
    """A decision that changed nothing, and why."""

    event_type: ClassVar[str] = "towline.approval.refused.v1"
    topic: ClassVar[TopicName] = "events"

    run_id: RunId
    approval_id: Name
    reason: ApprovalRefusal
    message: str | None = Field(default=None, description="More about the reason, for people.")


class ControlRefused(EventData):
    """A control command that changed nothing, and why."""

    event_type: ClassVar[str] = "towline.control.refused.v1"
    topic: ClassVar[TopicName] = "events"

    run_id: RunId
    action: ControlAction
    reason: ControlRefusal


class RunCompleted(EventData):
    """Terminal: the run returned."""

    event_type: ClassVar[str] = "towline.run.completed.v1"
    topic: ClassVar[TopicName] = "results"
    always_written: ClassVar[frozenset[str]] = frozenset({"output"})

    run_id: RunId
    run_type: Name
    output: JsonValue = None
    usage: Usage | None = None
    started_at: Timestamp
    finished_at: Timestamp


class RunFailed(EventData):
    """Terminal: the run raised."""

    event_type: ClassVar[str] = "towline.run.failed.v1"
    topic: ClassVar[TopicName] = "results"

    run_id: RunId
    run_type: Name
    error: ErrorInfo
    started_at: Timestamp | None = None
    finished_at: Timestamp


class RunCancelled(EventData):
    """Terminal: the run was cancelled by a command."""

    event_type: ClassVar[str] = "towline.run.cancelled.v1"
    topic: ClassVar[TopicName] = "results"

    run_id: RunId
    run_type: Name | None = None
    reason: str | None = None
    finished_at: Timestamp


class RunRejected(EventData):
    """Terminal: the run was never started."""

    event_type: ClassVar[str] = "towline.run.rejected.v1"
    topic: ClassVar[TopicName] = "results"

    run_id: RunId
    run_type: str | None = None
    error: ErrorInfo


class RunTypeInfo(ContractModel):
    """One run type of an app."""

    name: Name
    input_schema: dict[str, JsonValue] | None = Field(
        default=None, description="JSON Schema (2020-12) of the input; absent: any JSON."
    )
    description: str | None = None
    approvers: list[str] | None = Field(
        default=None, description="Who may decide this run type's approvals; absent: anyone."
    )


class AppRegistered(EventData):
    """What one app's workers can run; the catalog keeps the latest one per app."""

    event_type: ClassVar[str] = "towline.app.registered.v1"
    topic: ClassVar[TopicName] = "catalog"

    app: Name
    version: str
    run_types: list[RunTypeInfo]
    agents: list[str] = Field(default_factory=list)


EVENT_MODELS: Final[tuple[type[EventData], ...]] = (
    RunRequested,
    RunControl,
    ApprovalDecided,
    EventRaised,
    RunStarted,
    RunProgressed,
    ApprovalRequested,
    ApprovalResolved,
    ApprovalRefused,
    ControlRefused,
    RunCompleted,
    RunFailed,
    RunCancelled,
    RunRejected,
    AppRegistered,
)
EVENT_MODEL_BY_TYPE: Final[Mapping[str, type[EventData]]] = {m.event_type: m for m in EVENT_MODELS}

RunOutcome: TypeAlias = RunCompleted | RunFailed | RunCancelled | RunRejected
OUTCOME_MODELS: Final[tuple[type[EventData], ...]] = (RunCompleted, RunFailed, RunCancelled, RunRejected)

DataT = TypeVar("DataT", bound=EventData, default=EventData, covariant=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Event(Generic[DataT]):
    """One event as it travels: CloudEvents 1.0 attributes around the data."""

    id: str
    """Unique per source; deterministic for everything that Towline publishes (`ids`)."""
    source: str
    """Who published it, for example ``towline/worker/my-app``."""
    data: DataT
    time: datetime | None = None
    subject: str | None = None
    """The run id (the app's name in the catalog)."""
    traceparent: str | None = None
    """W3C trace context of whoever published it."""
    tracestate: str | None = None
    extensions: Mapping[str, str] = field(default_factory=dict[str, str])
    """CloudEvents extension attributes other than the trace context."""

    @property
    def type(self) -> str:
        """The CloudEvents type."""
        return self.data.event_type
