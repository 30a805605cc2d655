"""What may come in on `towline.runs`, and what becomes of it."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from tests.integration.wire.raw import Headers, Wire, binary

GOOD = {"run_type": "agent.Joker", "input": {"message": "A joke."}}


@pytest.mark.parametrize("structured", [False, True], ids=["binary", "structured"])
async def test_both_modes_of_cloudevents_are_taken(wire: Wire, structured: bool) -> None:
    run_id = f"mode-{uuid4().hex}"
    await wire.publish("runs", "run.requested", {"run_id": run_id, **GOOD}, structured=structured)

    assert (await wire.outcome(run_id)).type == "run.completed"


async def test_a_request_without_a_run_id_takes_its_event_s_id(wire: Wire) -> None:
    event_id = await wire.publish("runs", "run.requested", GOOD)

    assert (await wire.outcome(event_id)).id == f"{event_id}/outcome"


async def test_unknown_fields_are_ignored(wire: Wire) -> None:
    run_id = await wire.start("agent.Joker", {"message": "A joke."}, colour="blue")

    assert (await wire.outcome(run_id)).type == "run.completed"


async def test_five_copies_of_a_request_are_one_run_with_one_outcome(wire: Wire) -> None:
    data = {"run_id": f"copies-{uuid4().hex}", "run_type": "steps", "input": 5}
    await asyncio.gather(
        *(wire.publish("runs", "run.requested", data, event_id=f"same-{data['run_id']}") for _ in range(3)),
        *(wire.publish("runs", "run.requested", data) for _ in range(2)),
    )
    await wire.outcome(data["run_id"])
    await wire.publish("runs", "run.requested", data)
    await wire.settle()

    assert len(wire.outcomes(data["run_id"])) == 1
    assert len(wire.of(data["run_id"], "run.started")) == 1
    assert wire.dead_letters(data["run_id"]) == []


async def test_the_same_run_id_with_other_content_is_a_dead_letter_and_disturbs_nothing(wire: Wire) -> None:
    run_id = await wire.start("wait_for_go", "first")
    await wire.asked(run_id, "go")
    await wire.start("wait_for_go", "second", run_id=run_id)

    (letter,) = await wire.until(lambda: wire.dead_letters(run_id), "a dead letter")
    await wire.raise_event(run_id, "go", "went")
    outcome = await wire.outcome(run_id)

    assert letter.headers["towline_dead_letter_reason"] == "run_id_conflict"
    assert json.loads(letter.value or b"")["input"] == "second"
    assert outcome.data["output"] == "went"


async def test_an_unknown_run_type_is_rejected_by_name(wire: Wire) -> None:
    run_id = await wire.start("no_such_thing", {})

    outcome = await wire.outcome(run_id, timeout_s=60)

    assert outcome.type == "run.rejected"
    assert outcome.id == f"{run_id}/outcome"
    assert "no_such_thing" in outcome.data["error"]["message"]


async def test_a_request_that_has_expired_is_rejected(wire: Wire) -> None:
    past = (datetime.now(UTC) - timedelta(seconds=1)).isoformat()

    outcome = await wire.outcome(await wire.start("agent.Joker", {"message": "x"}, expires_at=past))

    assert outcome.type == "run.rejected"


async def test_a_request_for_later_starts_later(wire: Wire) -> None:
    due = datetime.now(UTC) + timedelta(seconds=2)

    outcome = await wire.outcome(await wire.start("agent.Joker", {"message": "x"}, start_at=due.isoformat()))

    assert datetime.fromisoformat(outcome.data["started_at"]) >= due - timedelta(milliseconds=50)


def without(name: str) -> Headers:
    return [header for header in binary("run.requested") if header[0] != name]


BAD: dict[str, tuple[bytes | None, Headers]] = {
    "invalid JSON": (b'{"run_type": ', binary("run.requested")),
    "not UTF-8": (b'{"run_type": "\xff"}', binary("run.requested")),
    "empty value": (b"", binary("run.requested")),
    "null value": (None, binary("run.requested")),
    "a list": (b"[]", binary("run.requested")),
    "wrong type of a field": (b'{"run_id": "r", "run_type": 7}', binary("run.requested")),
    "number as run_id": (b'{"run_id": 7, "run_type": "agent.Joker"}', binary("run.requested")),
    "no run_type": (b'{"run_id": "r"}', binary("run.requested")),
    "hostile run_id": (b'{"run_id": "../../etc/passwd", "run_type": "agent.Joker"}', binary("run.requested")),
    "run_id with a line break": (
        b'{"run_id": "a\\nb", "run_type": "agent.Joker"}',
        binary("run.requested"),
    ),
    "long run_id": (
        json.dumps({"run_id": "x" * 129, "run_type": "agent.Joker"}).encode(),
        binary("run.requested"),
    ),
    "control without run_id": (b'{"action": "cancel"}', binary("run.control")),
    "unknown action": (b'{"run_id": "r", "action": "explode"}', binary("run.control")),
    "unknown event type": (b'{"run_id": "r"}', binary("run.invented")),
    "event of another topic": (b'{"run_id": "r", "status": 1}', binary("run.progressed")),
    "no headers": (json.dumps(GOOD).encode(), []),
    "no ce_type": (json.dumps(GOOD).encode(), without("ce_type")),
    "no ce_id": (json.dumps(GOOD).encode(), without("ce_id")),
    "other ce_specversion": (
        json.dumps(GOOD).encode(),
        binary("run.requested", ce_specversion="0.3"),
    ),
    "structured, but broken": (b"{", [("content-type", b"application/cloudevents+json")]),
}


@pytest.mark.parametrize("case", BAD)
async def test_what_cannot_be_trusted_is_a_dead_letter_and_the_good_request_behind_it_runs(
    wire: Wire, case: str
) -> None:
    value, headers = BAD[case]
    run_id = f"behind-{uuid4().hex}"
    await wire.send("runs", value, key=run_id, headers=headers)
    await wire.publish("runs", "run.requested", {"run_id": run_id, **GOOD})

    outcome = await wire.outcome(run_id)
    (letter,) = await wire.until(lambda: wire.dead_letters(run_id), "a dead letter")

    assert outcome.type == "run.completed"
    assert letter.value == value or (not letter.value and not value)
    assert letter.headers.items() >= {name: text.decode() for name, text in headers}.items()
    marks = {
        name: letter.headers[f"towline_dead_letter_{name}"] for name in ("reason", "error", "offset", "time")
    }
    assert all(marks.values())
    assert letter.headers["towline_dead_letter_topic"].endswith("runs")
    assert letter.headers["towline_dead_letter_partition"].isdigit()


async def test_a_hundred_bad_events_do_not_stop_the_good_ones_among_them(wire: Wire) -> None:
    good: list[str] = []
    for number in range(100):
        await wire.send("runs", b"nonsense", key=f"bad-{number}", headers=binary("run.requested"))
        if number % 5 == 0:
            good.append(await wire.start("agent.Joker", {"message": "x"}))

    await wire.all_outcomes(good)
    await wire.until(
        lambda: (
            len({s.key for s in wire.seen if s.topic == "dead-letters" and (s.key or "").startswith("bad-")})
            == 100
        ),
        "100 dead letters",
    )


BAD_DECISIONS: dict[str, bytes | None] = {
    "approved as text": b'{"run_id": "RUN", "approval_id": "HumanApproval", "approved": "true"}',
    "no approval_id": b'{"run_id": "RUN", "approved": true}',
    "no verdict": b'{"run_id": "RUN", "approval_id": "HumanApproval"}',
    "data is no object": b'{"run_id": "RUN", "approval_id": "HumanApproval", "approved": true, "data": 7}',
    "null value": None,
}


@pytest.mark.parametrize("case", BAD_DECISIONS)
async def test_a_decision_that_cannot_be_trusted_decides_nothing(wire: Wire, case: str) -> None:
    run_id = await wire.start("two_questions")
    await wire.asked(run_id, "HumanApproval")
    value = BAD_DECISIONS[case]
    value = None if value is None else value.replace(b"RUN", run_id.encode())
    await wire.send("approvals", value, key=run_id, headers=binary("approval.decided"))

    (letter,) = await wire.until(lambda: wire.dead_letters(run_id), "a dead letter")
    assert letter.headers["towline_dead_letter_topic"].endswith("approvals")
    assert wire.of(run_id, "approval.resolved") == []

    await wire.decide(run_id, "HumanApproval", True)
    await wire.decide(run_id, "HumanApproval~2", False)
    assert (await wire.outcome(run_id)).data["output"] == [True, False]
