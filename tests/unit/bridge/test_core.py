"""What the bridge decides, as a table and by properties."""

from __future__ import annotations

import itertools
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from towline.bridge.catalog import Catalog
from towline.bridge.core import (
    CONTROL,
    ControlStep,
    Reject,
    Standing,
    Start,
    WaitForCatalog,
    answer_ids,
    decide_request,
    fingerprint,
    raised_command,
    refusal,
    same_request,
    standing,
    terminated_by,
    termination_output,
)
from towline.contracts.durable import RunEnvelope, unwrap_input, wrap_input
from towline.contracts.events import (
    AppRegistered,
    ApprovalDecided,
    ControlAction,
    Event,
    EventRaised,
    RunControl,
    RunRequested,
    RunStarted,
    RunTypeInfo,
)

NOW = datetime(2030, 1, 1, tzinfo=UTC)
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
MOMENTS = st.none() | st.datetimes(
    min_value=datetime(2029, 12, 30), max_value=datetime(2030, 1, 3), timezones=st.just(UTC)
)


def catalog(*run_types: RunTypeInfo, app="app") -> Catalog:
    found = Catalog()
    found.register(AppRegistered(app=app, version="1", run_types=list(run_types)))
    return found


def request(**fields) -> Event[RunRequested]:
    data = RunRequested(**({"run_id": "r", "run_type": "review"} | fields))
    return Event(id="e", source="s", data=data)


def decide(event, known, *, waited_s=0.0):
    return decide_request(
        event, known, now=NOW, waited_s=waited_s, run_type_grace_s=30.0, max_input_bytes=1000
    )


REVIEW = RunTypeInfo(name="review")


@given(
    st.builds(
        RunRequested,
        run_id=st.just("r"),
        run_type=st.sampled_from(["review", "typed", "agent.Writer", "nope"]),
        input=JSON,
        session_id=st.none() | st.just("s"),
        requested_by=st.none() | st.text(max_size=5),
        start_at=MOMENTS,
        expires_at=MOMENTS,
        tags=st.none() | st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=2),
    ),
    st.booleans(),
)
def test_a_request_is_started_exactly_when_it_is_known_valid_and_in_time(data, empty):
    known = Catalog() if empty else catalog(REVIEW, RunTypeInfo(name="typed", input_schema=SCHEMA))
    if not empty:
        known.register(AppRegistered(app="b", version="1", run_types=[], agents=["Writer"]))
    decision = decide(Event(id="e", source="s", data=data, traceparent="00-1-2-01"), known)
    if empty:
        assert decision == WaitForCatalog()
        return
    valid = data.run_type != "typed" or (isinstance(data.input, dict) and type(data.input.get("n")) is int)
    in_time = data.expires_at is None or (
        data.expires_at > NOW and (data.start_at is None or data.start_at <= data.expires_at)
    )
    if data.run_type != "nope" and in_time and valid:
        assert isinstance(decision, Start)
        envelope, run_input = unwrap_input(wrap_input(decision.envelope, decision.run_input))
        assert (envelope, run_input) == (decision.envelope, data.input)
        assert same_request(envelope, data)
        assert (decision.start_at, envelope.traceparent) == (data.start_at, "00-1-2-01")
    else:
        assert isinstance(decision, Reject)
        expected = (
            "unknown_run_type" if data.run_type == "nope" else "invalid_input" if in_time else "expired"
        )
        assert decision.error.type == expected


def test_without_apps_a_request_is_rejected_once_the_grace_is_over():
    decision = decide(request(), Catalog(), waited_s=30.0)
    assert isinstance(decision, Reject)
    assert decision.error.type == "unknown_run_type"


def test_too_large_an_input_names_size_and_limit():
    decision = decide(request(input="x" * 1000), catalog(REVIEW))
    assert isinstance(decision, Reject)
    assert "has 1002 bytes as JSON, at most 1000" in decision.error.message


@pytest.mark.parametrize(
    "change",
    [
        {"run_type": "other"},
        {"input": {"a": 2}},
        {"session_id": "s"},
        {"requested_by": "me"},
        {"start_at": NOW},
        {"expires_at": NOW},
        {"tags": {"a": "b"}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_each_field_that_makes_a_request_counts_in_its_fingerprint(change):
    base = request(input={"a": 1}).data
    assert fingerprint(base) != fingerprint(base.model_copy(update=change))


def test_the_fingerprint_knows_neither_order_nor_time_zone_nor_event():
    east = NOW.astimezone(timezone(timedelta(hours=5)))
    one = request(input={"a": 1, "b": [2]}, start_at=NOW)
    two = replace(request(input={"b": [2], "a": 1}, start_at=east), id="another")
    assert fingerprint(one.data) == fingerprint(two.data)


def test_an_orchestration_without_envelope_or_fingerprint_is_another_request():
    assert not same_request(None, request().data)
    assert not same_request(RunEnvelope(run_id="r", run_type="review"), request().data)


def test_every_control_command_has_a_step_in_every_standing():
    assert set(CONTROL) == set(itertools.product(get_args(ControlAction), get_args(Standing)))
    for (_, where), step in CONTROL.items():
        assert (step is ControlStep.WAIT) == (where == "unknown")
        assert (step is ControlStep.REFUSE) == (where == "ended")


@pytest.mark.parametrize(
    ("phase", "start_at", "expected"),
    [
        (None, None, "unknown"),
        ("pending", None, "active"),
        ("pending", NOW + timedelta(seconds=1), "scheduled"),
        ("pending", NOW, "active"),
        ("running", NOW + timedelta(seconds=1), "active"),
        ("suspended", None, "suspended"),
        ("completed", None, "ended"),
        ("failed", None, "ended"),
        ("terminated", None, "ended"),
    ],
)
def test_where_a_run_stands(phase, start_at, expected):
    envelope = RunEnvelope(run_id="r", run_type="t", start_at=start_at)
    assert standing(phase, envelope, now=NOW) == expected
    assert refusal(expected) == ("unknown_run" if expected == "unknown" else "already_finished")


@pytest.mark.parametrize("envelope", [None, RunEnvelope(run_id="r", run_type="t", role="child")])
def test_what_is_no_run_of_ours_is_unknown(envelope):
    assert standing("running", envelope, now=NOW) == "unknown"


def test_a_termination_tells_its_command():
    cancel = terminated_by(termination_output("c-1", "why"))
    assert (cancel.command_id, cancel.reason) == ("c-1", "why")
    for output in (None, "maintenance", {"$towline_cancel": {}}, {"$towline_cancel": {"command_id": 1}}, []):
        assert terminated_by(output) is None


def test_a_decision_reaches_the_run_unchanged():
    data = ApprovalDecided(
        run_id="r",
        approval_id="a",
        approved=False,
        feedback="no",
        data={"n": 1},
        approver="ann",
        digest="d",
    )
    command = raised_command(Event(id="c", source="s", data=data, time=NOW, traceparent="tp"))
    assert command.model_dump() == {
        "command_id": "c",
        "kind": "decision",
        "name": "a",
        "approved": False,
        "feedback": "no",
        "approver": "ann",
        "digest": "d",
        "data": {"n": 1},
        "time": NOW,
        "traceparent": "tp",
    }


def test_a_raised_event_reaches_the_run_unchanged():
    command = raised_command(Event(id="c", source="s", data=EventRaised(run_id="r", name="Paid", data=[1])))
    assert (command.kind, command.name, command.data, command.approved) == ("event", "Paid", [1], None)


@pytest.mark.parametrize(
    ("data", "answers"),
    [
        (RunRequested(run_id="r", run_type="t"), {"r/outcome"}),
        (
            RunControl(run_id="r", action="suspend"),
            {"r/control/suspend/refused/c-1", "r/control/suspend/done/c-1"},
        ),
        (
            ApprovalDecided(run_id="r", approval_id="a", approved=True),
            {"r/approval/a/refused/c-1", "r/approval/a/resolved/c-1"},
        ),
        (EventRaised(run_id="r", name="n"), {"r/approval/n/refused/c-1", "r/approval/n/resolved/c-1"}),
        (RunStarted(run_id="r", run_type="t"), set()),
    ],
)
def test_a_command_is_answered_under_ids_that_follow_from_it(data, answers):
    assert set(answer_ids(Event(id="c-1", source="s", data=data))) == answers
