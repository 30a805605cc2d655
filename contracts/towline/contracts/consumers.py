"""What the client's readers share: consumers without surprises, positions, and the ids seen lately."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import OrderedDict
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any, Final, Literal, Protocol, TypeAlias, TypeVar, cast

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from towline.contracts.errors import (
    ClientError,
    DecodeError,
    KafkaUnavailableError,
    PayloadStoreAwayError,
)
from towline.contracts.events import Event
from towline.contracts.kafka import REFUSALS, backoff_s, connect
from towline.contracts.payloads.claim_check import decode_resolved
from towline.contracts.payloads.store import PayloadStore
from towline.contracts.salvage import TolerantConsumer
from towline.contracts.settings import KafkaSettings

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

Offsets: TypeAlias = Mapping[TopicPartition, int]
Since: TypeAlias = Offsets | datetime | None
"""From where to read: offsets, a time, or None for all that is retained."""

METADATA_MAX_AGE_MS: Final = 30_000
"""A topic that grows is noticed within this time."""
_REQUEST_TIMEOUT_MS: Final = 10_000
_STOP_S: Final = 5.0
_DATA_NOT_TO_BE_HAD: Final = frozenset({"data_elsewhere", "payload_missing"})


class ConsumedRecord(Protocol):
    """The parts used of an aiokafka ConsumerRecord."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...]


class RecentIds:
    """The last `capacity` ids, to drop repeats with bounded memory."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._ids: OrderedDict[str, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._ids)

    def is_new(self, event_id: str) -> bool:
        """Whether `event_id` was not seen lately; it is remembered from now on."""
        if event_id in self._ids:
            self._ids.move_to_end(event_id)
            return False
        self._ids[event_id] = None
        if len(self._ids) > self._capacity:
            self._ids.popitem(last=False)
        return True


async def resolved(record: ConsumedRecord, payloads: PayloadStore | None) -> Event | None:
    """The record's event; None, with a line in the log, for one that is no event of the contract.

    Data that is kept in a payload store is fetched, however long the store is away.

    Raises:
        DecodeError: It is an event, but its data is not to be had: ``data_elsewhere``
            (`DataElsewhereError`: no store is configured) or ``payload_missing``.
    """
    for attempt in itertools.count():
        try:
            return await decode_resolved(payloads, key=record.key, value=record.value, headers=record.headers)
        except DecodeError as error:
            _log_undecodable(record, error)
            if error.reason in _DATA_NOT_TO_BE_HAD:
                raise
            return None
        except PayloadStoreAwayError as error:
            _log.warning("payload_store_away", extra={"attempt": attempt + 1, "error": str(error)})
            await asyncio.sleep(backoff_s(attempt))
    raise AssertionError("unreachable")


def _log_undecodable(record: ConsumedRecord, error: DecodeError) -> None:
    _log.warning(
        "record_undecodable",
        extra={
            "topic": record.topic,
            "partition": record.partition,
            "offset": record.offset,
            "reason": error.reason,
            "field": error.field,
            "error": str(error),
        },
    )


@asynccontextmanager
async def consumer(
    settings: KafkaSettings,
    *,
    client_id: str,
    timeout_s: float | None,
    group_id: str | None = None,
    start: Literal["earliest", "latest"] = "earliest",
) -> AsyncGenerator[AIOKafkaConsumer]:
    """A started consumer that never commits by itself, without a subscription yet.

    Raises:
        KafkaUnavailableError: No broker answered within `timeout_s` seconds.
    """

    def make() -> AIOKafkaConsumer:
        return TolerantConsumer(
            **settings.connection(),
            client_id=client_id,
            group_id=group_id,
            enable_auto_commit=False,
            auto_offset_reset=start,
            metadata_max_age_ms=METADATA_MAX_AGE_MS,
            request_timeout_ms=_REQUEST_TIMEOUT_MS,
        )

    started = await connect(
        make, lambda new: new.start(), stop_consumer, bootstrap=settings.bootstrap, timeout_s=timeout_s
    )
    try:
        yield started
    finally:
        await stop_consumer(started)


async def stop_consumer(started: AIOKafkaConsumer) -> None:
    """Close within a bound. Without a broker aiokafka's own stop may hang, or raise CancelledError."""
    stopping = asyncio.ensure_future(started.stop())
    done, _ = await asyncio.wait({stopping}, timeout=_STOP_S)
    if not done:
        _log.warning("consumer_stop_timed_out", extra={"timeout_s": _STOP_S})
        stopping.cancel()
    elif not stopping.cancelled() and (error := stopping.exception()) is not None:
        _log.warning("consumer_stop_failed", extra={"error": repr(error)})


async def partitions_of(reader: AIOKafkaConsumer, topics: Iterable[str]) -> list[TopicPartition]:
    """All partitions of `topics`, from the cluster.

    Raises:
        KafkaUnavailableError: A topic is not there, or the broker does not say.
    """
    client = cast("Any", reader)._client  # noqa: SLF001  # no public way to ask for a topic not subscribed to
    found: list[TopicPartition] = []
    for topic in topics:
        try:
            numbers = cast("set[int]", await client._wait_on_metadata(topic))  # noqa: SLF001
        except REFUSALS as error:
            raise refused(error) from error
        except KafkaError as error:
            raise KafkaUnavailableError(
                f"topic {topic} cannot be found ({error!r}): create the topics, or set another topic prefix"
            ) from error
        found += [TopicPartition(topic, number) for number in sorted(numbers)]
    return found


async def end_offsets(
    reader: AIOKafkaConsumer, partitions: Iterable[TopicPartition]
) -> dict[TopicPartition, int]:
    """Where each partition ends now."""
    return await _asked(cast("Any", reader).end_offsets(list(partitions)))


async def resolve(
    reader: AIOKafkaConsumer, partitions: Iterable[TopicPartition], since: Since
) -> dict[TopicPartition, int]:
    """The offsets at which to begin, so that nothing after `since` is missed."""
    wanted = list(partitions)
    earliest = await _asked(cast("Any", reader).beginning_offsets(wanted))
    if since is None:
        return earliest
    if isinstance(since, datetime):
        milliseconds = max(0, int(since.timestamp() * 1000))
        found: Mapping[TopicPartition, Any] = await _asked(
            cast("Any", reader).offsets_for_times(dict.fromkeys(wanted, milliseconds))
        )
        ends = await end_offsets(reader, wanted)
        return {
            partition: at.offset if (at := found.get(partition)) else ends[partition] for partition in wanted
        }
    # A partition that was added since then is read from its beginning.
    return {partition: max(since.get(partition, 0), earliest[partition]) for partition in wanted}


async def _asked(question: Any) -> Any:
    try:
        return await question
    except REFUSALS as error:
        raise refused(error) from error
    except KafkaError as error:
        raise KafkaUnavailableError(f"the broker did not tell its offsets ({error!r}): try again") from error


async def patiently(ask: Callable[[], Awaitable[_T]]) -> _T:
    """The answer to `ask`, however long the broker is away.

    Raises:
        ClientError: The broker refuses to answer this user.
    """
    for attempt in itertools.count():
        try:
            return await ask()
        except REFUSALS as error:
            raise refused(error) from error
        except (KafkaError, KafkaUnavailableError) as error:
            _log.warning("kafka_unreadable", extra={"attempt": attempt + 1, "error": repr(error)})
            await asyncio.sleep(backoff_s(attempt))
    raise AssertionError("unreachable")


def refused(error: KafkaError) -> ClientError:
    """The error for callers when the broker does not let this user read."""
    return ClientError(f"the broker refuses this user ({error!r}): let it read the topic and join the group")


def assign(reader: AIOKafkaConsumer, positions: Offsets) -> None:
    """Read exactly these partitions, from these offsets."""
    untyped = cast("Any", reader)
    untyped.assign(list(positions))
    for partition, offset in positions.items():
        untyped.seek(partition, offset)


async def poll(
    reader: AIOKafkaConsumer, *, timeout_s: float, max_records: int = 1000
) -> list[ConsumedRecord]:
    """The next records, those of one partition in order; none if `timeout_s` passes.

    Raises:
        KafkaError: As aiokafka raises it; the broker being away is no error.
    """
    batches: Mapping[TopicPartition, list[ConsumedRecord]] = await cast("Any", reader).getmany(
        timeout_ms=int(timeout_s * 1000), max_records=max_records
    )
    return [record for records in batches.values() for record in records]
