"""Reads the dead letters' topic, replays letters and marks them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from typing import Final, Protocol, cast

from aiokafka import TopicPartition
from aiokafka.errors import KafkaError

from towline.contracts.errors import KafkaUnavailableError
from towline.contracts.producer import EventProducer
from towline.contracts.salvage import TolerantConsumer
from towline.contracts.settings import KafkaSettings
from towline.delivery.letters import Letter, Letters, LetterState, mark_record, replay_record
from towline.delivery.membership import KafkaRecord

_START_S: Final = 15.0
_READ_S: Final = 120.0
_STOP_S: Final = 2.0
_POLL_MS: Final = 500


class _Reader(Protocol):
    async def start(self) -> None: ...
    async def stop(self) -> None: ...
    def assignment(self) -> set[TopicPartition]: ...
    async def end_offsets(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]: ...
    async def position(self, partition: TopicPartition) -> int: ...
    def getmany(self, *, timeout_ms: int) -> Awaitable[Mapping[TopicPartition, Sequence[KafkaRecord]]]: ...


async def read_letters(kafka: KafkaSettings) -> Letters:
    """All dead letters there are now.

    Raises:
        KafkaUnavailableError: No broker answered, or not in time.
    """
    letters = Letters()
    reader = cast(
        "_Reader",
        TolerantConsumer(
            kafka.topics.dead_letters,
            **kafka.connection(),
            client_id="towline-dead-letters",
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            request_timeout_ms=10_000,
        ),
    )
    try:
        async with asyncio.timeout(_START_S):
            await reader.start()
            ends = await reader.end_offsets(list(reader.assignment()))
        async with asyncio.timeout(_READ_S):
            while any([await reader.position(partition) < end for partition, end in ends.items()]):
                for records in (await reader.getmany(timeout_ms=_POLL_MS)).values():
                    for record in records:
                        letters.add(record)
    except (KafkaError, OSError, TimeoutError) as error:
        raise KafkaUnavailableError(
            f"the dead letters can't be read from {kafka.bootstrap} ({error!r}): "
            f"is Kafka up, and is there a topic {kafka.topics.dead_letters}?"
        ) from error
    finally:
        stopping = asyncio.ensure_future(reader.stop())
        await asyncio.wait({stopping}, timeout=_STOP_S)
        stopping.cancel()
    return letters


async def replay(
    kafka: KafkaSettings, producer: EventProducer, letters: Iterable[Letter], *, replays_max_count: int
) -> int:
    """Publish letters again where they came from, one after another in their order; how many.

    A letter is marked once its copy is acknowledged. A crash in between leaves it open: replayed again it
    carries the same event id, and is handled once.

    Raises:
        LetterError: One must not be replayed; none was.
        PublishError: Kafka did not acknowledge; those before are replayed and marked.
    """
    copies = [(letter, replay_record(letter, replays_max_count=replays_max_count)) for letter in letters]
    for letter, record in copies:
        origin = letter.origin
        await producer.send_record(
            origin.topic, record, name=f"replay of {origin}", partition=origin.partition
        )
        await mark(kafka, producer, letter, "replayed")
    return len(copies)


async def mark(
    kafka: KafkaSettings,
    producer: EventProducer,
    letter: Letter,
    state: LetterState,
    note: str | None = None,
) -> None:
    """Take a letter off the open ones.

    Raises:
        PublishError: Kafka did not acknowledge; call again.
    """
    await producer.send_record(
        kafka.topics.dead_letters, mark_record(letter, state, note), name=f"mark of {letter.origin}"
    )
