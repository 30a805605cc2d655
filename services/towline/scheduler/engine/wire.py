"""Encoding of history events and work items.

A work item repeats an instance's whole history, so it is never parsed and built again: events are kept as
the bytes of their protobuf messages, and a repeated field is the concatenation of its encoded elements.
"""

from collections.abc import Iterable, Iterator

from durabletask.internal import orchestrator_service_pb2 as pb
from google.protobuf.timestamp_pb2 import Timestamp
from google.protobuf.wrappers_pb2 import StringValue

MICROS = 1_000_000
"""Microseconds in a second: every time inside the engine is an int of microseconds since the epoch."""
_FIRST_US = -62_135_596_800 * MICROS
_LAST_US = 253_402_300_799 * MICROS

# Field tags (number << 3 | 2, all length-delimited) of the messages that are put together by concatenation.
PAST_EVENT = b"\x1a"
NEW_EVENT = b"\x22"
_REQUEST_INSTANCE_ID = b"\x0a"
_REQUEST_EXECUTION_ID = b"\x12"
_REQUEST_TRACE = b"\x42"
_ITEM_ORCHESTRATOR = b"\x0a"
_ITEM_ACTIVITY = b"\x12"
_ITEM_ENTITY = b"\x1a"
_ITEM_TOKEN = b"\x52"
_BATCH_INSTANCE_ID = b"\x0a"
_BATCH_STATE = b"\x12"
_BATCH_OPERATION = b"\x1a"
_STRING_VALUE = b"\x0a"
CHUNK_EVENT = b"\x0a"

_SHORT = tuple(bytes((n,)) for n in range(128))

HISTORY_LENGTH = "towline.history.length"
"""Property of a turn whose history is not all there: how many events it has."""
ENVELOPE_BYTES = 512
"""What a work item adds to its payloads at most: ids, token, field tags."""


def varint(value: int) -> bytes:
    """Encode a non-negative int as a protobuf varint."""
    if value < 128:
        return _SHORT[value]
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def field(tag: bytes, payload: bytes) -> bytes:
    """Encode one length-delimited field."""
    return tag + varint(len(payload)) + payload


def fields(tag: bytes, payloads: Iterable[bytes]) -> bytes:
    """Encode a repeated length-delimited field."""
    parts: list[bytes] = []
    for payload in payloads:
        parts += (tag, varint(len(payload)), payload)
    return b"".join(parts)


def timestamp(us: int) -> Timestamp:
    """Microseconds since the epoch as a protobuf timestamp."""
    return Timestamp(seconds=us // MICROS, nanos=us % MICROS * 1000)


def set_timestamp(target: Timestamp, us: int) -> None:
    """The same, into a message that is part of another."""
    target.seconds, rest = divmod(us, MICROS)
    target.nanos = rest * 1000


def micros(value: Timestamp) -> int:
    """A protobuf timestamp as microseconds, rounded up so that a timer never fires early.

    Times beyond the years 1 to 9999, which protobuf does not allow, become the nearest allowed ones.
    """
    us = value.seconds * MICROS + -(-value.nanos // 1000)
    return min(max(us, _FIRST_US), _LAST_US)


def text(value: str | None) -> StringValue | None:
    """A wrapper that keeps the difference between absent and empty."""
    return None if value is None else StringValue(value=value)


def value_of(message: StringValue, present: bool) -> str | None:
    """The text of an optional wrapper field, given the answer of ``HasField``."""
    return message.value if present else None


def parse_history(chunk: bytes) -> list[pb.HistoryEvent]:
    """Decode the events of stored history."""
    return list(pb.OrchestratorRequest.FromString(chunk).pastEvents)


def split_history(chunk: bytes) -> Iterator[bytes]:
    """The encoded events of stored history: there may be 10,000, so they are not decoded."""
    at, end = 0, len(chunk)
    while at < end:
        at += 1  # the tag
        size = shift = 0
        more = True
        while more:
            byte = chunk[at]
            size |= (byte & 127) << shift
            more, shift, at = byte > 127, shift + 7, at + 1
        yield chunk[at : at + size]
        at += size


def orchestrator_item(
    *,
    instance_id: bytes,
    execution_id: bytes,
    history: list[bytes],
    history_length: int | None,
    new_events: list[bytes],
    trace: bytes | None,
    token: bytes,
) -> bytes:
    """Encode a ``WorkItem`` that asks for one orchestrator turn.

    Args:
        instance_id: The instance.
        execution_id: Its execution.
        history: Chunks of its history: all, or some for a worker that can fetch the rest.
        history_length: How many events all of it has; None if it is all there.
        new_events: What is new.
        trace: The execution's trace context.
        token: The turn's token.
    """
    parts = [
        field(_REQUEST_INSTANCE_ID, instance_id),
        field(_REQUEST_EXECUTION_ID, field(_STRING_VALUE, execution_id)),
    ]
    parts += history
    parts.append(fields(NEW_EVENT, new_events))
    if history_length is not None:
        rest = pb.OrchestratorRequest(requiresHistoryStreaming=True)
        rest.properties[HISTORY_LENGTH].number_value = history_length
        parts.append(rest.SerializeToString())
    if trace:
        parts.append(field(_REQUEST_TRACE, trace))
    size = sum(map(len, parts))
    return b"".join((_ITEM_ORCHESTRATOR, varint(size), *parts, field(_ITEM_TOKEN, token)))


def activity_item(request: bytes, token: bytes) -> bytes:
    """Encode a ``WorkItem`` around a serialized ``ActivityRequest``."""
    return field(_ITEM_ACTIVITY, request) + field(_ITEM_TOKEN, token)


def entity_item(*, entity_id: bytes, state: bytes | None, operations: list[bytes], token: bytes) -> bytes:
    """Encode a ``WorkItem`` with an ``EntityBatchRequest``: the form with a trace context per operation."""
    parts = [field(_BATCH_INSTANCE_ID, entity_id)]
    if state is not None:
        parts.append(field(_BATCH_STATE, field(_STRING_VALUE, state)))
    parts.append(fields(_BATCH_OPERATION, operations))
    return field(_ITEM_ENTITY, b"".join(parts)) + field(_ITEM_TOKEN, token)


HEALTH_PING = pb.WorkItem(healthPing=pb.HealthPing()).SerializeToString()
