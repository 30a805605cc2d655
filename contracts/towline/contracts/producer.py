"""The one producer of events: idempotent, acknowledged by all replicas, bounded in time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Final, Self, cast

from aiokafka import AIOKafkaProducer
from aiokafka.errors import (
    ClusterAuthorizationFailedError,
    InvalidTopicError,
    KafkaError,
    KafkaTimeoutError,
    MessageSizeTooLargeError,
    RecordTooLargeError,
    TopicAuthorizationFailedError,
    UnknownTopicOrPartitionError,
)

from towline.contracts.cloudevents import Record, encode
from towline.contracts.errors import EncodeError, PayloadStoreAwayError, PublishError
from towline.contracts.events import Event
from towline.contracts.kafka import backoff_s, connect
from towline.contracts.payloads.claim_check import checked_in
from towline.contracts.payloads.store import PayloadStore
from towline.contracts.salvage import create_no_topics
from towline.contracts.settings import KafkaSettings
from towline.contracts.tracing import sending

_log = logging.getLogger(__name__)

_TOO_LARGE: Final = (MessageSizeTooLargeError, RecordTooLargeError)
_REFUSED: Final = (TopicAuthorizationFailedError, ClusterAuthorizationFailedError, InvalidTopicError)
_HARMLESS: Final = (KafkaTimeoutError, UnknownTopicOrPartitionError)
"""Errors after which the aiokafka producer is still good; after any other it may be dead for good."""
_STOP_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class _Send:
    topic: str
    record: Record
    event_id: str
    partition: int | None = None


class EventProducer:
    """Publishes events, each to the topic of its type.

    `send` returns when all in-sync replicas have the event. Retries inside one producer never write
    twice; after a `PublishError`, or a crash, send the same event again: its id stays the same and
    consumers drop ids that they know. Safe for concurrent use on one event loop.
    """

    def __init__(
        self,
        settings: KafkaSettings,
        *,
        client_id: str = "towline",
        delivery_timeout_s: float = 30.0,
        start_timeout_s: float | None = None,
        max_record_bytes: int = 1_000_000,
        linger_ms: int = 0,
        payloads: PayloadStore | None = None,
        event_bytes: int = 900_000,
    ) -> None:
        """Make a producer; `start` or ``async with`` connects it.

        Args:
            settings: Where Kafka is, and the topics' prefix.
            client_id: Shown in the broker's logs and quotas.
            delivery_timeout_s: Longest that a `send` waits for its acknowledgement, in seconds. aiokafka
                itself retries an idempotent send for ever.
            start_timeout_s: Longest that `start` waits for a broker, in seconds; None waits for ever.
            max_record_bytes: Largest record; Kafka's own default limit is 1,048,588 bytes a batch.
            linger_ms: Waits this long for more events to share a batch.
            payloads: Takes the data of events that are too large for Kafka; they carry a reference instead.
            event_bytes: Data of more bytes goes to `payloads`.
        """
        self._settings = settings
        self._client_id = client_id
        self._delivery_timeout_s = delivery_timeout_s
        self._start_timeout_s = start_timeout_s
        self._max_record_bytes = max_record_bytes
        self._linger_ms = linger_ms
        self._payloads = payloads
        self._event_bytes = event_bytes
        self._producer: AIOKafkaProducer | None = None
        self._replacing = asyncio.Lock()
        self._stopped = False

    async def start(self) -> None:
        """Connect. Waits for a broker with backoff.

        Raises:
            KafkaUnavailableError: No broker answered within `start_timeout_s`.
        """
        self._producer = await self._connect(self._start_timeout_s)

    async def stop(self) -> None:
        """Send what is waiting, for at most 5 s, then close. Idempotent."""
        self._stopped = True
        producer, self._producer = self._producer, None
        if producer is not None:
            await _close(producer, timeout_s=_STOP_S)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def send(self, event: Event) -> None:
        """Publish one event and wait until it is acknowledged.

        With tracing set up, it is published in a span below the trace that it names, else below the
        current span, and carries the context of that span.

        Raises:
            EncodeError: It cannot be written, or is larger than Kafka takes. Sending again does not help.
            PublishError: No acknowledgement in time; the event may be written all the same.
        """
        await self.send_many((event,))

    async def send_many(self, events: Sequence[Event]) -> None:
        """Publish events in order and wait until all are acknowledged.

        An event without a time gets the present one.

        Raises:
            EncodeError: As for `send`. If an event cannot be encoded, none of them was sent; if one is
                found too large, earlier ones may have been.
            PublishError: As for `send`; names the first event without acknowledgement.
        """
        name = self._settings.topics.name
        with sending([(name(event.data.topic), event) for event in events]) as traced:
            now = datetime.now(UTC)
            timed = [event if event.time is not None else replace(event, time=now) for event in traced]
            sends = [_Send(name(event.data.topic), encode(event), event.id) for event in timed]
            await self._deliver([await self._claim_checked(send) for send in sends])

    async def send_record(
        self, topic: str, record: Record, *, name: str, partition: int | None = None
    ) -> None:
        """Publish a record as it is, to a topic by its full name, and wait until it is acknowledged.

        For records that are no events of the contract (dead letters and their replay). One whose key and
        value are both null gets an empty key: aiokafka writes no other.

        Args:
            topic: The topic's full name.
            record: Key, value and headers.
            name: Stands for the event's id in errors and logs.
            partition: Where to write it, as long as the topic has it; default: by the key.

        Raises:
            EncodeError: It is larger than Kafka takes.
            PublishError: As for `send`.
        """
        if record.key is None and record.value is None:
            record = replace(record, key=b"")
        await self._deliver([_Send(topic, record, name, partition)])

    async def _claim_checked(self, send: _Send) -> _Send:
        """`send` as it is, or with a reference in place of its data if that is large."""
        store, data = self._payloads, send.record.value
        # The catalog is compacted: there, a record without value deletes.
        compacted = send.topic == self._settings.topics.catalog
        if store is None or data is None or len(data) <= self._event_bytes or compacted:
            return send
        try:
            async with asyncio.timeout(self._delivery_timeout_s):
                return replace(send, record=await checked_in(send.record, send.event_id, store))
        except (PayloadStoreAwayError, TimeoutError) as error:
            raise PublishError(
                f"event {send.event_id}: its {len(data)} bytes are too large for Kafka, and the payload "
                f"store did not take them ({error!s}): send it again once the store answers",
                event_id=send.event_id,
            ) from error

    async def _deliver(self, waiting: list[_Send]) -> None:
        for send in waiting:
            self._check_size(send)
        deadline = asyncio.get_running_loop().time() + self._delivery_timeout_s
        attempt = 0
        while waiting:
            producer = self._current(waiting[0])
            waiting, problem = await self._attempt(producer, waiting, deadline)
            if not waiting:
                return
            self._raise_if_final(waiting[0], problem, deadline)
            if not isinstance(problem, _HARMLESS):
                await self._replace(producer, waiting[0], deadline)
            await asyncio.sleep(backoff_s(attempt))
            attempt += 1

    async def _attempt(
        self, producer: AIOKafkaProducer, sends: Sequence[_Send], deadline: float
    ) -> tuple[list[_Send], BaseException | None]:
        """Hand all over in order; what was not acknowledged, and the first problem."""
        futures: list[tuple[_Send, asyncio.Future[Any]]] = []
        problem: BaseException | None = None
        try:
            async with asyncio.timeout_at(deadline):
                for send in sends:
                    record, partition, untyped = send.record, send.partition, cast("Any", producer)
                    if partition is not None and partition not in await untyped.partitions_for(send.topic):
                        partition = None
                    future: Any = await untyped.send(
                        send.topic,
                        value=record.value,
                        key=record.key,
                        headers=list(record.headers),
                        partition=partition,
                    )
                    futures.append((send, future))
                await asyncio.wait([future for _, future in futures])
        except (KafkaError, TimeoutError) as error:
            problem = error
        if problem is not None and futures:
            remaining = max(0.0, deadline - asyncio.get_running_loop().time())
            await asyncio.wait([future for _, future in futures], timeout=remaining)
        left: list[_Send] = []
        for send, future in futures:
            if not future.done():
                # It may fail long after; nobody waits for it then.
                future.add_done_callback(_consume_exception)
                left.append(send)
            elif (error := future.exception()) is not None:
                problem = problem or error
                left.append(send)
        return [*left, *sends[len(futures) :]], problem

    def _raise_if_final(self, send: _Send, problem: BaseException | None, deadline: float) -> None:
        if isinstance(problem, _TOO_LARGE):
            raise EncodeError(
                f"event {send.event_id}: is too large for topic {send.topic} ({problem}): make it smaller, "
                "set TOWLINE_PAYLOADS_URL to a store for large data, or raise the topic's max.message.bytes"
            ) from problem
        if isinstance(problem, _REFUSED):
            raise PublishError(
                f"event {send.event_id}: the broker refuses topic {send.topic} ({problem!r}): "
                "let this user write to it, or set another topic prefix",
                event_id=send.event_id,
            ) from problem
        if asyncio.get_running_loop().time() >= deadline:
            raise self._too_late(send, problem) from problem

    def _too_late(self, send: _Send, problem: BaseException | None) -> PublishError:
        what = "topic is missing" if isinstance(problem, UnknownTopicOrPartitionError) else repr(problem)
        return PublishError(
            f"event {send.event_id}: no acknowledgement from {self._settings.bootstrap} for topic "
            f"{send.topic} within {self._delivery_timeout_s:g} s ({what}): send it again once Kafka answers",
            event_id=send.event_id,
        )

    def _check_size(self, send: _Send) -> None:
        record = send.record
        # What is passed on as it came may have headers without a value.
        headers_size = sum(len(name) + len(value or b"") for name, value in record.headers)
        size = len(record.value or b"") + headers_size
        if size > self._max_record_bytes:
            raise EncodeError(
                f"event {send.event_id}: has {size} bytes, at most {self._max_record_bytes} are allowed: "
                "make it smaller, or set TOWLINE_PAYLOADS_URL to a store for large data"
            )

    def _current(self, send: _Send) -> AIOKafkaProducer:
        if self._producer is None:
            raise PublishError(
                f"event {send.event_id}: the producer is {'stopped' if self._stopped else 'not started'}: "
                "use it between start() and stop()",
                event_id=send.event_id,
            )
        return self._producer

    async def _replace(self, broken: AIOKafkaProducer, send: _Send, deadline: float) -> None:
        """Put a new aiokafka producer in place of one that a fatal error has ended."""
        try:
            async with asyncio.timeout_at(deadline), self._replacing:
                if self._producer is not broken:
                    return
                _log.warning("producer_replaced", extra={"event_id": send.event_id})
                fresh = await self._connect(None)
                if self._stopped:
                    await _close(fresh, timeout_s=_STOP_S)
                    return
                self._producer = fresh
        except TimeoutError as error:
            raise self._too_late(send, error) from error
        await _close(broken, timeout_s=0.1)

    async def _connect(self, timeout_s: float | None) -> AIOKafkaProducer:
        def make() -> AIOKafkaProducer:
            producer = AIOKafkaProducer(
                **self._settings.connection(),
                client_id=self._client_id,
                enable_idempotence=True,
                acks="all",
                linger_ms=self._linger_ms,
                # Room for the headers; what is too large is refused before, by `_check_size`.
                max_request_size=self._max_record_bytes + 4096,
                request_timeout_ms=10_000,
                retry_backoff_ms=100,
            )
            create_no_topics(producer.client)
            return producer

        return await connect(
            make,
            lambda producer: producer.start(),
            lambda producer: _close(producer, timeout_s=0.1),
            bootstrap=self._settings.bootstrap,
            timeout_s=timeout_s,
        )


def _consume_exception(future: asyncio.Future[Any]) -> None:
    if not future.cancelled():
        future.exception()


async def _close(producer: AIOKafkaProducer, *, timeout_s: float) -> None:
    """Close within a bound. aiokafka's own stop flushes for ever while the broker is away."""
    stopping = asyncio.ensure_future(producer.stop())
    done, _ = await asyncio.wait({stopping}, timeout=timeout_s)
    if done:
        if not stopping.cancelled() and (error := stopping.exception()) is not None:
            _log.warning("producer_stop_failed", extra={"error": repr(error)})
        return
    _log.warning("producer_stop_timed_out", extra={"timeout_s": timeout_s})
    # No public way to give up what is waiting: fail it, so that stop() and the sender come to their end.
    internals = cast("Any", producer)
    internals._message_accumulator.fail_all(KafkaTimeoutError())  # noqa: SLF001
    sender_task = internals._sender.sender_task  # noqa: SLF001
    if sender_task is not None:
        sender_task.cancel()
    await producer.client.close()
    await asyncio.wait({stopping}, timeout=_STOP_S)
