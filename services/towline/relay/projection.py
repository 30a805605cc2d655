"""What an event means for the run's stream and for the index. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, Literal, TypeAlias, cast

from towline.contracts import ids
from towline.contracts.errors import DataElsewhereError
from towline.contracts.events import (
    ApprovalRefused,
    ApprovalRequested,
    ApprovalResolved,
    ControlRefused,
    Event,
    EventData,
    RunCancelled,
    RunCompleted,
    RunFailed,
    RunProgressed,
    RunRejected,
    RunStarted,
    is_run_id,
)
from towline.contracts.payload_reference import DATAREF
from towline.contracts.stream import StreamEntryType

RunStatus: TypeAlias = Literal[
    "pending", "running", "suspended", "completed", "failed", "cancelled", "rejected"
]
RUN_STATUSES: Final[tuple[RunStatus, ...]] = (
    "pending",
    "running",
    "suspended",
    "completed",
    "failed",
    "cancelled",
    "rejected",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What one event changes."""

    event_id: str
    event_type: str
    run_id: str
    time_ms: int
    entry: StreamEntryType
    data: Mapping[str, Any]
    """Of the stream entry."""
    raw: Mapping[str, Any]
    """The event's data as it is."""
    ends: bool = False
    progress: int | None = None
    """Number of the progress that it tells: see `towline.contracts.ids.progress_id`."""
    refuses: bool = False
    """It answers a command, maybe one for a run that there never was: it makes no run known."""
    traceparent: str | None = None
    """Trace of whoever published the event."""
    fields: Mapping[str, str] = field(default_factory=dict[str, str])
    """Of the run's hash, overwritten."""
    approval_id: str | None = None
    approval: Literal["requested", "resolved", ""] = ""


_PROGRESS_DIGITS_MAX: Final = 15
"""Larger numbers Redis's scripts do not tell apart."""


def dumps(value: Any) -> str:
    """`value` as JSON on one line."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def milliseconds(time: datetime) -> int:
    """Unix time in ms."""
    return int(time.timestamp() * 1000)


def project(event: Event, *, recorded_ms: int) -> Change | None:
    """What `event` changes; None for events that say nothing about a run.

    Args:
        event: From `events` or `results`.
        recorded_ms: The Kafka record's time, for an event that carries none.
    """
    describe = _DESCRIPTIONS.get(type(event.data))
    if describe is None:
        return None
    raw = event.data.model_dump(mode="json", exclude_none=True)
    time_ms = recorded_ms if event.time is None else milliseconds(event.time)
    described = describe(event, raw)
    return Change(
        event_id=event.id,
        event_type=event.type,
        run_id=cast("str", raw["run_id"]),
        time_ms=time_ms,
        raw=raw,
        traceparent=event.traceparent,
        **described,
    )


def project_reference(event: DataElsewhereError, *, recorded_ms: int) -> Change | None:
    """What an event changes whose data is in a payload store, as far as it is known without the data.

    None unless it is a completed run's outcome: its output stays where it is, until somebody asks for it.
    """
    run_id = event.subject
    if event.event_type != RunCompleted.event_type or run_id is None or not is_run_id(run_id):
        return None
    raw = {"run_id": run_id, DATAREF: str(event.reference)}
    fields = {"status": "completed", "outcome": dumps(raw), "outcome_type": event.event_type}
    if event.time is not None:
        fields["finished_at"] = event.time.isoformat()
    entry, data = ending("completed", raw)
    return Change(
        event_id=event.event_id,
        event_type=event.event_type,
        run_id=run_id,
        time_ms=recorded_ms if event.time is None else milliseconds(event.time),
        entry=entry,
        data=data,
        raw=raw,
        ends=True,
        traceparent=event.traceparent,
        fields=fields,
    )


def _started(event: Event, raw: dict[str, Any]) -> dict[str, Any]:
    fields = {"status": "running", "run_type": raw["run_type"]}
    if "session_id" in raw:
        fields["session_id"] = raw["session_id"]
    if "tags" in raw:
        fields["tags"] = dumps(raw["tags"])
    if event.time is not None:
        fields["started_at"] = event.time.isoformat()
    if event.traceparent is not None:
        fields["traceparent"] = event.traceparent
    return {"entry": "status", "data": raw, "fields": fields}


def _progressed(event: Event, raw: dict[str, Any]) -> dict[str, Any]:
    # The answer to a suspend or resume says so in its id; a run's own status may look like anything.
    status = raw.get("status")
    if "/control/" in event.id and isinstance(status, dict) and "suspended" in status:
        suspended = cast("dict[str, Any]", status)["suspended"] is True
        return {"entry": "status", "data": raw, "fields": {"status": "suspended" if suspended else "running"}}
    number = event.id.rpartition("/")[2]
    is_numbered = (
        number.isdecimal()
        and len(number) <= _PROGRESS_DIGITS_MAX
        and event.id == ids.progress_id(raw["run_id"], int(number))
    )
    return {
        "entry": "status",
        "data": raw,
        "fields": {"custom_status": dumps(status)},
        "progress": int(number) if is_numbered else None,
    }


def _approval(phase: str) -> Callable[[Event, dict[str, Any]], dict[str, Any]]:
    def describe(_event: Event, raw: dict[str, Any]) -> dict[str, Any]:
        return {
            "entry": "approval",
            "data": {"phase": phase, **raw},
            "approval_id": raw["approval_id"],
            "approval": "" if phase == "refused" else phase,
            "refuses": phase == "refused",
        }

    return describe


def _control_refused(_event: Event, raw: dict[str, Any]) -> dict[str, Any]:
    return {"entry": "status", "data": raw, "refuses": True}


def ending(outcome: str, raw: Mapping[str, Any]) -> tuple[StreamEntryType, dict[str, Any]]:
    """The last entry of the stream of a run that ended as `outcome`.

    Args:
        outcome: The run's status.
        raw: Data of the outcome's event, or where it is.
    """
    if outcome == "failed":
        return "error", {"error": raw["error"]}
    data: dict[str, Any] = {"outcome": outcome}
    shown = _SHOWN[outcome]
    if DATAREF in raw:
        data[DATAREF] = raw[DATAREF]
    elif shown in raw:
        data[shown] = raw[shown]
    elif shown == "output":
        data["output"] = None
    return "end", data


_SHOWN: Final[Mapping[str, str]] = {"completed": "output", "cancelled": "reason", "rejected": "error"}


def _ended(outcome: str) -> Callable[[Event, dict[str, Any]], dict[str, Any]]:
    def describe(event: Event, raw: dict[str, Any]) -> dict[str, Any]:
        fields = {"status": outcome, "outcome": dumps(raw), "outcome_type": event.type}
        for name in ("run_type", "started_at", "finished_at"):
            if raw.get(name) is not None:
                fields[name] = raw[name]
        if "finished_at" not in fields and event.time is not None:
            fields["finished_at"] = event.time.isoformat()
        entry, data = ending(outcome, raw)
        return {"entry": entry, "data": data, "fields": fields, "ends": True}

    return describe


_DESCRIPTIONS: Final[Mapping[type[EventData], Callable[[Event, dict[str, Any]], dict[str, Any]]]] = {
    RunStarted: _started,
    RunProgressed: _progressed,
    ApprovalRequested: _approval("requested"),
    ApprovalResolved: _approval("resolved"),
    ApprovalRefused: _approval("refused"),
    ControlRefused: _control_refused,
    RunCompleted: _ended("completed"),
    RunFailed: _ended("failed"),
    RunCancelled: _ended("cancelled"),
    RunRejected: _ended("rejected"),
}
