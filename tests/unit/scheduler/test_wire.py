"""Encoding of histories: what is put together by hand reads as protobuf's own."""

from __future__ import annotations

from durabletask.internal import orchestrator_service_pb2 as pb
from hypothesis import given
from hypothesis import strategies as st

from towline.scheduler.engine import wire

encoded_events = st.lists(st.binary(max_size=300), max_size=20)


@given(encoded_events)
def test_stored_events_come_apart_as_they_were_put_together(events: list[bytes]) -> None:
    assert list(wire.split_history(wire.fields(wire.PAST_EVENT, events))) == events


def test_chunks_of_a_history_read_as_its_events() -> None:
    events = [pb.HistoryEvent(eventId=number, executionResumed={}) for number in (1, 200, 70_000)]
    stored = wire.fields(wire.PAST_EVENT, [event.SerializeToString() for event in events])

    chunk = pb.HistoryChunk.FromString(wire.fields(wire.CHUNK_EVENT, wire.split_history(stored)))

    assert list(chunk.events) == events == wire.parse_history(stored)
