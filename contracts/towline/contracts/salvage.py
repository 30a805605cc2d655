"""A consumer that gets past records which aiokafka cannot read.

aiokafka decodes header names as UTF-8 and raises UnicodeDecodeError out of `getmany` for any other, again
and again: one record with such a header (any librdkafka client can write one) would stop its partition for
ever. Worse, the records that the same call had already taken from other partitions are lost with the
exception, although their positions have moved.

The same goes for a batch that it cannot read (spoilt on a broker's disk, or compressed in a way for which a
library is missing): it raises a KafkaError. Nothing may be passed over there, so the partition waits, and is
tried again, while the others go on.

How much a broker gathers before it answers is fixed when a consumer is made: see `TolerantConsumer.gather`.

And its clients have a broker that creates topics by itself (Kafka's default) create every topic that they ask
for: see `create_no_topics`. All private knowledge of aiokafka is in this module; a test with a real
broker tells when it no longer holds.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from functools import partial
from types import FrameType, FunctionType, MethodType
from typing import Any, Final, TypeAlias, cast

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaError
from aiokafka.protocol.metadata import MetadataRequest

from towline.contracts.attributes import UNREADABLE

_log = logging.getLogger(__name__)

_Batches: TypeAlias = "dict[TopicPartition, list[ConsumerRecord[Any, Any]]]"

_UNPACK: Final = "_unpack_records"
_TAKE: Final = "getall"
_POLL: Final = "fetched_records"
_MIN_BYTES: Final = "_fetch_min_bytes"
_NO_TIMESTAMP: Final = -1
_RETRY_S: Final = 10.0
_FIX: Final = (
    "the partition waits here until the batch can be read: let a replica with an intact copy lead it. If "
    "there is none, end its readers, set their groups' offset behind the batch, and publish its events again"
)


def create_no_topics(client: Any) -> None:
    """Let an `AIOKafkaClient` ask for topics without having the broker create them.

    Created by the way they have the broker's settings, not the contract's, and a misspelt prefix gets topics
    of its own, to which events are published for nobody.
    """
    update = cast("FunctionType", cast("Any", AIOKafkaClient)._metadata_update)  # noqa: SLF001
    asking = {"MetadataRequest": partial(MetadataRequest, allow_auto_topic_creation=False)}
    careful = FunctionType(update.__code__, {**update.__globals__, **asking})
    client._metadata_update = MethodType(careful, client)  # noqa: SLF001


class TolerantConsumer(AIOKafkaConsumer):
    """An `AIOKafkaConsumer` whose `getmany` hands out a stand-in for a record that it cannot read.

    The stand-in has the record's topic, partition and offset, no key, no value, and the one header
    ``towline_unreadable``, which says what was wrong: `decode` refuses it with that as the reason, so it
    goes the way of all records that are no events. What the record held can be looked up where it is, by
    another client. Logged as `record_unreadable`. `getone` and iteration are not covered.

    A partition whose next batch cannot be read is paused and tried again every 10 s, each time with the line
    `batch_unreadable` in the log, which says where and what to do.
    """

    def __init__(self, *topics: str, **options: Any) -> None:
        cast("Any", super()).__init__(*topics, **options)
        create_no_topics(cast("Any", self)._client)  # noqa: SLF001
        self._waiting: set[TopicPartition] = set()
        """Paused here, because of a batch that cannot be read."""
        self._paused_too: set[TopicPartition] = set()
        """Of those, the ones that were paused by the caller meanwhile."""

    def gather(self, min_bytes: int) -> None:
        """Have brokers answer once they have `min_bytes`, or after ``fetch_max_wait_ms``; 1: at once.

        From the next fetch on: one that waits at a broker ends as it was meant to. With an aiokafka that has
        this elsewhere, fetches go on as they are.
        """
        fetcher = getattr(self, "_fetcher", None)
        if hasattr(fetcher, _MIN_BYTES):
            setattr(fetcher, _MIN_BYTES, min_bytes)

    def pause(self, *partitions: TopicPartition) -> None:  # noqa: D102  # inherited
        cast("Any", super()).pause(*partitions)
        self._paused_too |= self._waiting.intersection(partitions)

    def resume(self, *partitions: TopicPartition) -> None:  # noqa: D102  # inherited
        self._paused_too.difference_update(partitions)
        cast("Any", super()).resume(*(one for one in partitions if one not in self._waiting))

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
        except KafkaError as error:
            frames = _locals(error)
            if _UNPACK not in frames:
                raise
            batches, partition, offset = _taken(frames)
            cast("Any", self).seek(partition, offset)
            self._wait(partition)
            where = {"topic": partition.topic, "partition": partition.partition, "offset": offset}
            _log.error("batch_unreadable", extra={**where, "error": repr(error), "fix": _FIX})
            return batches

    def _wait(self, partition: TopicPartition) -> None:
        self._waiting.add(partition)
        self._paused_too.discard(partition)
        cast("Any", super()).pause(partition)
        asyncio.get_running_loop().call_later(_RETRY_S, self._try_again, partition)

    def _try_again(self, partition: TopicPartition) -> None:
        self._waiting.discard(partition)
        if partition in self._paused_too:
            self._paused_too.discard(partition)
        elif partition in cast("Any", self).assignment():
            cast("Any", super()).resume(partition)


def _salvaged(error: UnicodeDecodeError) -> tuple[_Batches, ConsumerRecord[Any, Any]] | None:
    """What the failed call had taken, with the stand-in last in its partition; None for another error."""
    frames = _locals(error)
    if _UNPACK not in frames:
        return None
    batches, partition, offset = _taken(frames)
    stand_in = _stand_in(partition, offset, error)
    batches[partition] = [*batches.get(partition, ()), stand_in]
    return batches, stand_in


def _locals(error: BaseException) -> dict[str, dict[str, Any]]:
    return {frame.f_code.co_name: frame.f_locals for frame in _frames(error)}


def _taken(frames: dict[str, dict[str, Any]]) -> tuple[_Batches, TopicPartition, int]:
    """What the failed call had taken, and where it failed: the partition, and the offset there."""
    unpacking: Any = frames[_UNPACK]["self"]
    partition = cast("TopicPartition", unpacking._tp)  # noqa: SLF001
    batches: _Batches = dict(frames.get(_POLL, {}).get("drained", {}))
    if before := frames.get(_TAKE, {}).get("ret_list"):
        batches[partition] = list(before)
    return batches, partition, cast("int", unpacking.next_fetch_offset)


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
