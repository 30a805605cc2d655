"""Getting past a record that aiokafka cannot read.

aiokafka decodes header names as UTF-8 and raises UnicodeDecodeError out of `getmany` for any other, again
and again: one record with such a header (any librdkafka client can write one) would stop its partition for
ever. Worse, the records that the same call had already taken from other partitions are lost with the
exception, although their positions have moved. All private knowledge of aiokafka is in this module; a test
with a real broker tells when it no longer holds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any, Final, cast

from aiokafka import AIOKafkaConsumer, TopicPartition

_UNPACK: Final = "_unpack_records"
_TAKE: Final = "getall"
_POLL: Final = "fetched_records"


@dataclass(frozen=True, slots=True)
class Salvaged:
    """What could be saved."""

    records: list[Any]
    """Readable records (aiokafka's ConsumerRecord) that the failed call had already taken, in order."""
    partition: TopicPartition
    offset: int
    """Offset of the unreadable record. The consumer now stands behind it."""


def salvage(consumer: AIOKafkaConsumer, error: UnicodeDecodeError) -> Salvaged | None:
    """Move `consumer` past the record at which its `getmany` raised `error`.

    Returns:
        The records which that call would have lost, and where the unreadable one is; None if `error` did
        not come from reading a record: raise it then.
    """
    frames = {frame.f_code.co_name: frame.f_locals for frame in _frames(error)}
    if _UNPACK not in frames:
        return None
    unpacking: Any = frames[_UNPACK]["self"]
    partition = cast("TopicPartition", unpacking._tp)  # noqa: SLF001
    offset = cast("int", unpacking.next_fetch_offset)
    drained: dict[TopicPartition, list[Any]] = frames.get(_POLL, {}).get("drained", {})
    records = [record for taken in drained.values() for record in taken]
    records += frames.get(_TAKE, {}).get("ret_list", [])
    cast("Any", consumer).seek(partition, offset + 1)
    return Salvaged(records, partition, offset)


def _frames(error: BaseException) -> Iterator[FrameType]:
    trace = error.__traceback__
    while trace is not None:
        yield trace.tb_frame
        trace = trace.tb_next
