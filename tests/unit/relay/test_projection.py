"""What each event means for the stream and the index."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from towline.contracts.events import (
    AppRegistered,
    ApprovalRefused,
    ApprovalRequested,
    ApprovalResolved,
    ControlRefused,
    ErrorInfo,
    Event,
    EventData,
    RunCancelled,
    RunCompleted,
    RunFailed,
    RunProgressed,
    RunRejected,
    RunRequested,
    RunStarted,
)
from towline.relay.projection import Change, project

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
FAILURE = ErrorInfo(type="ValueError", message="no")


def change(data: EventData, event_id: str = "id", **event: Any) -> Change:
    made = project(Event(id=event_id, source="s", data=data, time=NOW, **event), recorded_ms=7)
    assert made is not None
    return made


@pytest.mark.parametrize(
    ("data", "entry", "shown"),
    [
        (RunStarted(run_id="r", run_type="t"), "status", {"run_id": "r", "run_type": "t"}),
        (RunProgressed(run_id="r", status={"a": None}), "status", {"run_id": "r", "status": {"a": None}}),
        (
            ApprovalRequested(run_id="r", approval_id="a", title="T"),
            "approval",
            {"phase": "requested", "run_id": "r", "approval_id": "a", "title": "T"},
        ),
        (
            ApprovalResolved(run_id="r", approval_id="a", outcome="rejected", feedback="no"),
            "approval",
            {"phase": "resolved", "run_id": "r", "approval_id": "a", "outcome": "rejected", "feedback": "no"},
        ),
        (
            ApprovalRefused(run_id="r", approval_id="a", reason="stale"),
            "approval",
            {"phase": "refused", "run_id": "r", "approval_id": "a", "reason": "stale"},
        ),
        (
            ControlRefused(run_id="r", action="cancel", reason="already_finished"),
            "status",
            {"run_id": "r", "action": "cancel", "reason": "already_finished"},
        ),
        (
            RunCompleted(run_id="r", run_type="t", output=[None, 1], started_at=NOW, finished_at=NOW),
            "end",
            {"outcome": "completed", "output": [None, 1]},
        ),
        (
            RunCompleted(run_id="r", run_type="t", started_at=NOW, finished_at=NOW),
            "end",
            {"outcome": "completed", "output": None},
        ),
        (
            RunCancelled(run_id="r", reason="enough", finished_at=NOW),
            "end",
            {"outcome": "cancelled", "reason": "enough"},
        ),
        (
            RunRejected(run_id="r", error=FAILURE),
            "end",
            {"outcome": "rejected", "error": {"type": "ValueError", "message": "no"}},
        ),
        (
            RunFailed(run_id="r", run_type="t", error=FAILURE, finished_at=NOW),
            "error",
            {"error": {"type": "ValueError", "message": "no"}},
        ),
    ],
)
def test_each_event_is_one_entry(data: EventData, entry: str, shown: dict[str, Any]) -> None:
    made = change(data)
    assert (made.entry, dict(made.data)) == (entry, shown)
    assert made.ends == (data.topic == "results")


def test_commands_and_the_catalog_change_nothing() -> None:
    for data in (RunRequested(run_type="t"), AppRegistered(app="a", version="1", run_types=[])):
        assert project(Event(id="id", source="s", data=data), recorded_ms=0) is None


def test_an_answer_to_suspend_changes_the_status_and_a_runs_own_status_does_not() -> None:
    data = RunProgressed(run_id="r", status={"suspended": True})
    assert change(data, "r/control/suspend/done/1").fields == {"status": "suspended"}
    assert change(data, "r/progress/1").fields == {"custom_status": '{"suspended":true}'}
    resumed = RunProgressed(run_id="r", status={"suspended": False})
    assert change(resumed, "r/control/resume/done/2").fields == {"status": "running"}


def test_the_records_time_stands_in_for_a_missing_one() -> None:
    made = project(Event(id="id", source="s", data=RunStarted(run_id="r", run_type="t")), recorded_ms=7)
    assert made is not None
    assert made.time_ms == 7
