"""What counts as the answer to a command, in words and exit codes."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from towline.cli.answers import verdict
from towline.contracts.events import (
    ApprovalRefused,
    ApprovalResolved,
    ControlRefused,
    ErrorInfo,
    Event,
    EventData,
    RunCancelled,
    RunCompleted,
    RunFailed,
    RunProgressed,
)

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (ApprovalResolved(run_id="r", approval_id="a", outcome="approved"), ("approved", True)),
        (ApprovalResolved(run_id="r", approval_id="a", outcome="rejected"), ("rejected", True)),
        (ApprovalRefused(run_id="r", approval_id="a", reason="stale"), ("refused: stale", False)),
        (ControlRefused(run_id="r", action="cancel", reason="unknown_run"), ("refused: unknown_run", False)),
        (RunProgressed(run_id="r", status={"suspended": True}), ("done", True)),
        (RunCancelled(run_id="r", finished_at=NOW), ("cancelled", True)),
        (
            RunCompleted(run_id="r", run_type="t", started_at=NOW, finished_at=NOW),
            ("too late: the run completed", False),
        ),
        (
            RunFailed(run_id="r", run_type="t", error=ErrorInfo(type="E", message="m"), finished_at=NOW),
            ("too late: the run failed", False),
        ),
    ],
)
def test_an_answer_is_told_in_a_few_words(data: EventData, expected: tuple[str, bool]) -> None:
    assert verdict(Event(id="x", source="s", data=data)) == expected
