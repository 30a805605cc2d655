"""Events whose data is in a payload store: encoded, decoded, and refused without one."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from towline.contracts import (
    DataElsewhereError,
    DecodeError,
    EncodeError,
    Event,
    RunCompleted,
    decode,
    encode,
)
from towline.contracts.payloads import PayloadReference, PayloadStore, checked_in, decode_resolved
from towline.contracts.payloads.folder import FolderBackend

NOW = datetime(2026, 11, 24, 20, 0, tzinfo=UTC)
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def outcome(output: Any) -> Event[RunCompleted]:
    data = RunCompleted(run_id="r1", run_type="a", output=output, started_at=NOW, finished_at=NOW)
    return Event(id="r1/outcome", source="tests", data=data, time=NOW, traceparent=TRACE)


@pytest.fixture
def store(tmp_path: Path) -> PayloadStore:
    return PayloadStore(FolderBackend(tmp_path, retention_s=60), max_bytes=1_000_000)


async def test_a_claim_checked_event_is_decoded_equal(store: PayloadStore) -> None:
    event = outcome(["ä" * 1_000, {"n": 1}])
    record = await checked_in(encode(event), event.id, store)
    assert record.value is None
    assert record.key == b"r1"
    found = await decode_resolved(store, key=record.key, value=None, headers=record.headers)
    assert found.data == event.data
    assert found.extensions == {}, "the reference is no part of the event"


async def test_without_a_store_the_error_names_the_setting_and_what_is_known(store: PayloadStore) -> None:
    record = await checked_in(encode(outcome("x")), "r1/outcome", store)
    for value in (None, b""):
        with pytest.raises(DataElsewhereError, match="TOWLINE_PAYLOADS_URL") as elsewhere:
            decode(value=value, headers=record.headers)
        error = elsewhere.value
        assert (error.reason, error.field) == ("data_elsewhere", "dataref")
        assert (error.subject, error.event_id, error.event_type) == (
            "r1",
            "r1/outcome",
            "towline.run.completed.v1",
        )
        assert (error.time, error.traceparent) == (NOW, TRACE)
    with pytest.raises(DataElsewhereError):
        await decode_resolved(None, value=None, headers=record.headers)


async def test_structured_events_may_carry_a_reference_too(store: PayloadStore) -> None:
    event = outcome("x")
    reference = await store.put(encode(event).value or b"")
    body = {
        "specversion": "1.0",
        "id": event.id,
        "source": "tests",
        "type": event.type,
        "dataref": str(reference),
    }
    headers = [("content-type", b"application/cloudevents+json")]
    found = await decode_resolved(store, value=json.dumps(body).encode(), headers=headers)
    assert found.data == event.data


async def test_a_payload_that_is_gone_or_is_no_event_has_its_own_reasons(store: PayloadStore) -> None:
    headers = encode(outcome("x")).headers
    for data, reason in ((None, "payload_missing"), (b"[]", "invalid_data"), (b"nonsense", "invalid_json")):
        reference = PayloadReference("0" * 64, 5) if data is None else await store.put(data)
        refers = (*headers, ("ce_dataref", str(reference).encode()))
        with pytest.raises(DecodeError) as refused:
            await decode_resolved(store, value=None, headers=refers)
        assert refused.value.reason == reason


def test_data_beside_a_reference_counts_and_the_reference_is_not_followed() -> None:
    record = encode(outcome("here"))
    event = decode(value=record.value, headers=(*record.headers, ("ce_dataref", b"http://169.254.169.254/")))
    assert isinstance(event.data, RunCompleted)
    assert event.data.output == "here"


@pytest.mark.parametrize("reference", ["http://169.254.169.254/", "file:///etc/passwd", "../x", "s3://b/k"])
def test_foreign_references_are_refused_without_being_looked_at(reference: str) -> None:
    headers = (*encode(outcome("x")).headers, ("ce_dataref", reference.encode()))
    with pytest.raises(DecodeError, match="is not followed") as refused:
        decode(value=None, headers=headers)
    assert refused.value.reason == "invalid_reference"


def test_nobody_sets_a_reference_by_an_extension() -> None:
    event = Event(id="x", source="s", data=outcome("x").data, extensions={"dataref": "file:///etc/passwd"})
    with pytest.raises(EncodeError, match="reserved"):
        encode(event)
