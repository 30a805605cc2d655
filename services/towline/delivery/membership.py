"""aiokafka's group consumer behind types: what we use of it, and how it is set up."""

# aiokafka has no public way to hear of heartbeats.
# pyright: reportPrivateUsage=false
# ruff: noqa: SLF001

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, Protocol, TypeAlias, cast

from aiokafka import ConsumerRebalanceListener, ConsumerRecord, TopicPartition
from aiokafka.coordinator.assignors.range import RangePartitionAssignor

from towline.contracts.salvage import TolerantConsumer
from towline.contracts.settings import KafkaSettings

KafkaRecord: TypeAlias = "ConsumerRecord[bytes | None, bytes | None]"

_FETCH_MAX_BYTES: Final = 32 * 1024 * 1024
_FETCH_PARTITION_MAX_BYTES: Final = 4 * 1024 * 1024


class GroupMember(Protocol):
    """The part of `AIOKafkaConsumer` that delivery uses."""

    def subscribe(self, *, topics: Sequence[str], listener: ConsumerRebalanceListener) -> None:
        """Choose the topics; `listener` hears of each rebalance."""
        ...

    async def start(self) -> None:
        """Connect, join the group and wait for the first assignment."""
        ...

    async def stop(self) -> None:
        """Leave the group. May hang, and may raise CancelledError, while the broker is away."""
        ...

    def getmany(
        self, *, timeout_ms: int, max_records: int
    ) -> Awaitable[Mapping[TopicPartition, Sequence[KafkaRecord]]]:
        """Fetched records; waits without bound while a rebalance is under way."""
        ...

    async def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Commit; retries by itself for as long as the coordinator is away."""
        ...

    def highwater(self, partition: TopicPartition) -> int | None:
        """The offset that the partition's next record will get, as of the last fetch."""
        ...

    def pause(self, *partitions: TopicPartition) -> None:
        """Hand out nothing more of `partitions`."""
        ...

    def resume(self, *partitions: TopicPartition) -> None:
        """Undo `pause`."""
        ...


class _Member(TolerantConsumer):
    """Tells when Kafka last knew it as a member: aiokafka keeps that to itself."""

    accepted: Callable[[float], None]

    async def start(self) -> None:
        await super().start()
        # Its first heartbeat is sent a quarter of a session after it has joined.
        coordinator: Any = self._coordinator
        beat: Callable[[], Awaitable[bool]] = coordinator._do_heartbeat

        async def heartbeat() -> bool:
            sent_at = asyncio.get_running_loop().time()
            success = await beat()
            if success:
                self.accepted(sent_at)
            return success

        coordinator._do_heartbeat = heartbeat


def group_member(
    kafka: KafkaSettings,
    *,
    accepted: Callable[[float], None],
    group_id: str,
    session_timeout_s: float,
    rebalance_timeout_s: float,
    poll_s: float,
) -> GroupMember:
    """A consumer that commits nothing by itself.

    Args:
        kafka: Where Kafka is.
        accepted: Called with the loop's time at which a heartbeat was sent that Kafka has accepted: the
            partitions are ours for a session from then.
        group_id: The consumer group.
        session_timeout_s: Kafka takes our partitions away after so long without a heartbeat.
        rebalance_timeout_s: How long the group waits for us to give partitions back.
        poll_s: Longest time between two polls; only a loop that hangs exceeds it.
    """
    arguments: dict[str, Any] = kafka.connection()
    consumer = _Member(
        **arguments,
        group_id=group_id,
        client_id=f"towline-{group_id}",
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        # Publishers may use transactions: what they take back was never asked for.
        isolation_level="read_committed",
        # Eager: each rebalance takes everything away first. aiokafka has no cooperative protocol.
        partition_assignment_strategy=(RangePartitionAssignor,),
        session_timeout_ms=int(session_timeout_s * 1000),
        heartbeat_interval_ms=int(session_timeout_s * 1000 / 4),
        rebalance_timeout_ms=int(rebalance_timeout_s * 1000),
        max_poll_interval_ms=int(poll_s * 1000),
        request_timeout_ms=15_000,
        retry_backoff_ms=250,
        max_partition_fetch_bytes=_FETCH_PARTITION_MAX_BYTES,
        fetch_max_bytes=_FETCH_MAX_BYTES,
    )
    consumer.accepted = accepted
    return cast("GroupMember", consumer)
