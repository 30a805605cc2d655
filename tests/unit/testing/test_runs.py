"""What is said of a run's events, and what the message says when it is not so."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from towline.contracts.events import ApprovalRequested, Event, EventData, RunCompleted, RunStarted
from towline.testing.runs import ExpectedEvent, difference

NOW = datetime(2026, 11, 24, tzinfo=UTC)


def event(data: EventData) -> Event:
    return Event(id="e", source="test", data=data)


SAID = [
    event(RunStarted(run_id="r", run_type="t")),
    event(ApprovalRequested(run_id="r", approval_id="a")),
    event(RunCompleted(run_id="r", run_type="t", output={"n": 7}, started_at=NOW, finished_at=NOW)),
]


@pytest.mark.parametrize(
    ("expected", "exact"),
    [
        ([], False),
        (["run.completed"], False),
        (["run.started", "run.completed"], False),
        (["towline.run.started.v1", ApprovalRequested], False),
        ([("run.completed", {"output": {"n": 7}, "run_type": "t"})], False),
        ([RunStarted, (ApprovalRequested, {"approval_id": "a"}), "run.completed"], True),
    ],
)
def test_what_was_said_in_that_order_is_accepted(expected: list[ExpectedEvent], exact: bool) -> None:
    assert difference(SAID, expected, exact=exact) is None


@pytest.mark.parametrize(
    ("expected", "exact", "said"),
    [
        (["run.failed"], False, "no 'run.failed' after event 0"),
        (["run.completed", "run.started"], False, "no 'run.started' after event 3"),
        (["run.started", "run.started"], False, "no 'run.started' after event 1"),
        ([("run.completed", {"output": 8})], False, "no ('run.completed', {'output': 8})"),
        ([("run.completed", {"no_such_field": None})], False, "no_such_field"),
        (["run.started", "run.completed"], True, "event 2 is approval.requested"),
        (["run.started", "approval.requested"], True, "run.completed was not expected"),
        ([*["run.started", "approval.requested", "run.completed"], "run.completed"], True, "is nothing"),
    ],
)
def test_anything_else_is_named(expected: list[Any], exact: bool, said: str) -> None:
    assert said in (difference(SAID, expected, exact=exact) or "")
