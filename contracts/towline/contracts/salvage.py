"""A consumer that gets past records which aiokafka cannot read.

aiokafka decodes header names as UTF-8 and raises UnicodeDecodeError out of `getmany` for any other, again
and again: one record with such a header (any librdkafka client can write one) would stop its partition for
ever. Worse, the records that the same call had already taken from other partitions are lost with the
exception, although their positions have moved. All private knowledge of aiokafka is in this module; a test
with a real broker tells when it no longer holds.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from types import FrameType
from typing import Any, Final, TypeAlias, cast

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition

from towline.contracts.attributes import UNREADABLE

_log = logging.getLogger(__name__)

_Batches: TypeAlias = "dict[TopicPartition, list[ConsumerRecord[Any, Any]]]"

_UNPACK: Final = "_unpack_records"
_TAKE: Final = "getall"
_POLL: Final = "fetched_records"
_NO_TIMESTAMP: Final = -1


class TolerantConsumer(AIOKafkaConsumer):
    """An `AIOKafkaConsumer` whose `getmany` hands out a stand-in for a record that it cannot read.

    The stand-in has the record's topic, partition and offset, no key, no value, and the one header
    ``towline_unreadable``, which says what was wrong: `decode` refuses it with that as the reason, so it
    goes the way of all records that are no events. What the record held can be looked up where it is, by
    another client. Logged as `record_unreadable`. `getone` and iteration are not covered.
    """

    async def getmany(  # noqa: D102  # inherited
        self, *partitions: TopicPartition, timeout_ms: int = 0, max_records: int | None = None
    ) -> _Batches:
        try:
            return await cast("Any", super()).getmany(
                *partitions, timeout_ms=timeout_ms, max_records=max_records
            )
        except UnicodeDecodeError as error:
            saved = _salvaged(error)
            if saved is None:
                raise
            batches, unreadable = saved
            partition = TopicPartition(unreadable.topic, unreadable.partition)
            cast("Any", self).seek(partition, unreadable.offset + 1)
            where = {"topic": partition.topic, "partition": partition.partition, "offset": unreadable.offset}
            _log.warning("record_unreadable", extra={**where, "error": str(error)})
            return batches


def _salvaged(error: UnicodeDecodeError) -> tuple[_Batches, ConsumerRecord[Any, Any]] | None:
    """What the failed call had taken, with the stand-in last in its partition; None for another error."""
    frames = {frame.f_code.co_name: frame.f_locals for frame in _frames(error)}
    if _UNPACK not in frames:
        return None
    unpacking: Any = frames[_UNPACK]["self"]
    partition = cast("TopicPartition", unpacking._tp)  # noqa: SLF001
    offset = cast("int", unpacking.next_fetch_offset)
    stand_in = _stand_in(partition, offset, error)
    batches: _Batches = dict(frames.get(_POLL, {}).get("drained", {}))
    batches[partition] = [*frames.get(_TAKE, {}).get("ret_list", []), stand_in]
    return batches, stand_in


def _stand_in(partition: TopicPartition, offset: int, error: UnicodeDecodeError) -> ConsumerRecord[Any, Any]:
    problem = f"a header's name is no UTF-8: {bytes(error.object)[:80]!r}"
    return ConsumerRecord(
        topic=partition.topic,
        partition=partition.partition,
        offset=offset,
        timestamp=_NO_TIMESTAMP,
        timestamp_type=0,
        key=None,
        value=None,
        checksum=None,
        serialized_key_size=-1,
        serialized_value_size=-1,
        headers=((UNREADABLE, problem.encode()),),
    )


def _frames(error: BaseException) -> Iterator[FrameType]:
    trace = error.__traceback__
    while trace is not None:
        yield trace.tb_frame
        trace = trace.tb_next
