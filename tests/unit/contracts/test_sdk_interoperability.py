"""The CloudEvents SDK reads what we write, and we read what it writes."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from cloudevents.core.bindings import kafka as sdk
from cloudevents.core.v1.event import CloudEvent

from towline.contracts import Event, RunCompleted, RunRequested, decode, encode

NOW = datetime(2026, 11, 24, 20, 0, 0, 250000, tzinfo=UTC)
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def sdk_event(data: dict[str, Any]) -> CloudEvent:
    return CloudEvent(
        {
            "id": "e-1",
            "source": "/shop",
            "type": "towline.run.requested.v1",
            "time": NOW,
            "subject": "größe",
            "datacontenttype": "application/json",
            "traceparent": TRACE,
            "tenant": "acme",
        },
        data,
    )


@pytest.mark.parametrize("write", [sdk.to_binary_event, sdk.to_structured_event])
def test_what_the_sdk_writes_is_read(write: Any) -> None:
    message = write(sdk_event({"run_id": "r-1", "run_type": "a", "input": {"ü": [1, 2.5, None]}}))
    event = decode(key=message.key, value=message.value, headers=message.headers.items())
    assert event == Event(
        id="e-1",
        source="/shop",
        data=RunRequested(run_id="r-1", run_type="a", input={"ü": [1, 2.5, None]}),
        time=NOW,
        subject="größe",
        traceparent=TRACE,
        extensions={"tenant": "acme"},
    )


def test_the_sdk_reads_what_is_written() -> None:
    record = encode(
        Event(
            id="r-1/outcome",
            source="towline/worker/a",
            time=NOW,
            data=RunCompleted(run_id="r-1", run_type="a", output={"ü": 1}, started_at=NOW, finished_at=NOW),
            traceparent=TRACE,
        )
    )
    assert record.value is not None
    read = sdk.from_kafka_event(sdk.KafkaMessage(dict(record.headers), record.key, record.value))
    assert read.get_id() == "r-1/outcome"
    assert read.get_type() == "towline.run.completed.v1"
    assert read.get_time() == NOW
    assert read.get_subject() == "r-1"
    assert read.get_extension("traceparent") == TRACE
    assert read.get_extension("partitionkey") == "r-1"
    assert read.get_data() == json.loads(record.value)
