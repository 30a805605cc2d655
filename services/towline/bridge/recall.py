"""Looks up what was already answered by whoever had a partition before: docs/decisions/0006.

A bridge that dies between publishing an answer and committing its command leaves the answer on Kafka and
nothing else. Judged anew, the command could get another one: the run has moved on. So before a command
that may have been handled before is judged, the answers published since it was sent are read back. One
scan serves all that ask at about the same time.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol, cast

from aiokafka import TopicPartition
from aiokafka.errors import KafkaError

from towline.bridge.core import REQUEST_ID, rejection_of
from towline.bridge.errors import AnswersUnreadableError
from towline.contracts.attributes import CE_PREFIX
from towline.contracts.salvage import TolerantConsumer
from towline.contracts.settings import KafkaSettings
from towline.delivery import KafkaRecord

logger = logging.getLogger(__name__)

Published = set[str]
"""Event ids of answers; of rejections, `rejection_of`."""

_CLOCKS_APART_MS: Final = 30_000
"""A record's time is its publisher's; an answer's is the bridge's."""
_GATHER_S: Final = 0.2
"""The first records of all partitions come within this time: then one scan serves them."""
_POLL_MS: Final = 500
_CALL_S: Final = 15.0
_READ_S: Final = 120.0
_STOP_S: Final = 2.0
_ANSWERS: Final = frozenset(
    {
        b"towline.approval.refused.v1",
        b"towline.approval.resolved.v1",
        b"towline.control.refused.v1",
        b"towline.run.progressed.v1",
        b"towline.run.rejected.v1",
    }
)


@dataclass(slots=True, eq=False)
class _Scan:
    from_ms: int
    began_at: float | None = None
    """None: it has not begun, and may still begin earlier in the topics."""
    published: set[str] = field(default_factory=set[str])
    count: int = 0
    task: asyncio.Task[None] | None = None


class Recall:
    """The answers that are on Kafka already.

    Safe for concurrent use on one event loop. Keeps the last scan only.
    """

    def __init__(self, kafka: KafkaSettings) -> None:
        self._kafka = kafka
        self._scan: _Scan | None = None

    async def published(self, *, since_ms: int, after: float) -> Published:
        """Answers published from `since_ms` (less the clocks' difference) until now.

        Args:
            since_ms: When the command was published.
            after: Monotonic seconds. What was published until then is read; until now, if nobody asked since.

        Raises:
            AnswersUnreadableError: Kafka is away; ask again.
        """
        scan = self._fitting(max(0, since_ms - _CLOCKS_APART_MS), after)
        assert scan.task is not None
        # Shielded: the others still wait for it when one of them is broken off.
        await asyncio.shield(scan.task)
        return scan.published

    def _fitting(self, from_ms: int, after: float) -> _Scan:
        scan = self._scan
        if scan is not None and scan.task is not None:
            failed = scan.task.done() and (scan.task.cancelled() or scan.task.exception() is not None)
            if scan.began_at is None:
                scan.from_ms = min(scan.from_ms, from_ms)
                return scan
            if not failed and scan.began_at >= after:
                if scan.from_ms <= from_ms:
                    return scan
                from_ms = min(from_ms, scan.from_ms)
        scan = self._scan = _Scan(from_ms)
        scan.task = asyncio.create_task(self._run(scan), name="recall")
        # Whoever waits gets the error; if nobody does any more, it is nobody's.
        scan.task.add_done_callback(lambda task: task.cancelled() or task.exception())
        return scan

    async def _run(self, scan: _Scan) -> None:
        await asyncio.sleep(_GATHER_S)
        scan.began_at = time.monotonic()
        try:
            await self._read(scan)
        except (KafkaError, OSError, TimeoutError) as error:
            raise AnswersUnreadableError(f"earlier answers can't be read from Kafka: {error!r}") from error
        logger.info(
            "answers_recalled",
            extra={
                "records": scan.count,
                "answers": len(scan.published),
                "seconds": round(time.monotonic() - scan.began_at, 3),
            },
        )

    async def _read(self, scan: _Scan) -> None:
        topics = self._kafka.topics
        reader = cast(
            "_Reader",
            # Without a group: all partitions are ours.
            TolerantConsumer(
                topics.events,
                topics.results,
                **self._kafka.connection(),
                client_id="towline-bridge-recall",
                enable_auto_commit=False,
                auto_offset_reset="earliest",
                request_timeout_ms=10_000,
            ),
        )
        try:
            async with asyncio.timeout(_CALL_S):
                await reader.start()
                partitions = list(reader.assignment())
                ends = await reader.end_offsets(partitions)
                starts = await reader.offsets_for_times(dict.fromkeys(partitions, scan.from_ms))
            open_ends: dict[TopicPartition, int] = {}
            for partition, end in ends.items():
                start = starts.get(partition)
                # None: nothing is as young as that.
                if start is not None and start.offset < end:
                    reader.seek(partition, start.offset)
                    open_ends[partition] = end
                else:
                    reader.seek(partition, end)
            await _read_until(reader, open_ends, scan)
        finally:
            stopping = asyncio.ensure_future(reader.stop())
            await asyncio.wait({stopping}, timeout=_STOP_S)
            stopping.cancel()


async def _read_until(reader: _Reader, open_ends: dict[TopicPartition, int], scan: _Scan) -> None:
    deadline = time.monotonic() + _READ_S
    while open_ends:
        if time.monotonic() > deadline:
            # A publisher may give its records any time: one from long ago must not keep commands waiting.
            logger.warning("recall_cut_short", extra={"records": scan.count, "partitions": len(open_ends)})
            return
        for records in (await reader.getmany(timeout_ms=_POLL_MS)).values():
            for record in records:
                scan.count += 1
                _note(record, scan.published)
        for partition in list(open_ends):
            # By position, not by the last record: a compacted or transactional end has none.
            if await reader.position(partition) >= open_ends[partition]:
                del open_ends[partition]


def _note(record: KafkaRecord, published: set[str]) -> None:
    headers = dict(record.headers)
    event_id = headers.get("ce_id")
    if event_id is not None and headers.get("ce_type") in _ANSWERS:
        name = event_id.decode("utf-8", "replace")
        if (request_id := headers.get(f"{CE_PREFIX}{REQUEST_ID}")) is not None:
            name = rejection_of(name, request_id.decode("utf-8", "replace"))
        published.add(name)


class _OffsetAndTimestamp(Protocol):
    offset: int


class _Reader(Protocol):
    async def start(self) -> None: ...
    async def stop(self) -> None: ...
    def assignment(self) -> set[TopicPartition]: ...
    async def end_offsets(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]: ...
    async def offsets_for_times(
        self, timestamps: Mapping[TopicPartition, int]
    ) -> Mapping[TopicPartition, _OffsetAndTimestamp | None]: ...
    async def position(self, partition: TopicPartition) -> int: ...
    def seek(self, partition: TopicPartition, offset: int) -> None: ...
    def getmany(self, *, timeout_ms: int) -> Awaitable[Mapping[TopicPartition, Sequence[KafkaRecord]]]: ...
