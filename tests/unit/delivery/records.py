"""Records as aiokafka hands them out."""

from __future__ import annotations

from aiokafka import ConsumerRecord, TopicPartition

PARTITION = TopicPartition("t.runs", 0)


def record(
    offset: int,
    *,
    topic: str = "t.runs",
    partition: int = 0,
    key: bytes | None = b"k",
    value: bytes | None = b"{}",
    headers: tuple[tuple[str, bytes], ...] = (),
) -> ConsumerRecord:
    """One record."""
    return ConsumerRecord(
        topic=topic,
        partition=partition,
        offset=offset,
        timestamp=0,
        timestamp_type=0,
        key=key,
        value=value,
        checksum=None,
        serialized_key_size=len(key or b""),
        serialized_value_size=len(value or b""),
        headers=headers,
    )
