"""Reads `events` and `results` and applies them.

The offsets are kept in Redis with the data that they speak of (`Keys.offsets`), not in Kafka: when Redis
comes back older than it was, or empty, the lost part is read again, and what was not lost recognises itself.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from aiokafka import ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import KafkaError
from aiokafka.partitioner import murmur2  # pyright: ignore[reportUnknownVariableType]

from towline.contracts.cloudevents import decode
from towline.contracts.errors import DataElsewhereError, DecodeError, PayloadStoreAwayError
from towline.contracts.payloads import PayloadStore, decode_resolved
from towline.contracts.settings import KafkaSettings
from towline.relay.audience import Audience
from towline.relay.ends import Held, HeldOutcomes, Progress
from towline.relay.errors import RedisAwayError, RedisLostDataError
from towline.relay.member import member, wait_for
from towline.relay.projection import Change, project, project_reference
from towline.relay.reads import RECORDS_MAX, Reads
from towline.relay.settings import RelaySettings
from towline.relay.store import Applied, Mode, RunStore, Step
from towline.relay.tracing import note_applied

_log = logging.getLogger(__name__)

_HELD_MAX: Final = 5_000
_HELD_CHARS_MAX: Final = 32 * 1024 * 1024
_CHECK_S: Final = 1.0
_STUCK_S: Final = 120.0
_BACKOFF_S: Final = (0.1, 0.2, 0.5, 1.0, 2.0)
_STOP_S: Final = 3.0


@dataclass(slots=True)
class _Assignment:
    """What is known between two rebalances. A batch that a rebalance overtakes ends on the old one."""

    held: HeldOutcomes
    unpositioned: set[TopicPartition]
    progress: dict[str, Progress] = field(default_factory=dict[str, Progress])
    known: dict[str, int] = field(default_factory=dict[str, int])
    """Offsets that Redis has had."""


class LifecycleConsumer:
    """One member of the relay's consumer group.

    Args:
        kafka: Where Kafka is.
        settings: Group and waits.
        store: Where changes go.
        audience: Who would notice that they are late.
        payloads: Has the data of events that carry a reference to it.
    """

    def __init__(
        self,
        kafka: KafkaSettings,
        settings: RelaySettings,
        store: RunStore,
        audience: Audience,
        payloads: PayloadStore | None = None,
    ) -> None:
        self._payloads = payloads
        self._kafka = kafka
        self._settings = settings
        self._group = f"{kafka.topic_prefix}{settings.group}"
        self._store = store
        self._assignment = self._new_assignment(())
        self._checked_at = 0.0
        self._audience = audience
        self._reads = Reads(audience)
        self._stopping = asyncio.Event()
        self._progress_at = time.monotonic()
        self._joined = False
        self._problem: str | None = "has not joined its group yet"
        self.applied = 0
        self.lag = 0
        """Records not read yet, of the partitions held."""
        self.undecodable = 0
        """Records that were no event of the contract."""

    @property
    def held_count(self) -> int:
        """Outcomes that wait for their run's last tokens."""
        return len(self._assignment.held)

    async def run(self) -> None:
        """Consume until `stop`. Trouble with Kafka and Redis is logged and outlived."""
        attempt = 0
        while not self._stopping.is_set():
            began = time.monotonic()
            try:
                await self._session()
            except (KafkaError, OSError, RedisAwayError) as error:
                self._problem = f"{type(error).__name__}: {error}"
                attempt = 0 if time.monotonic() - began > 30 else attempt + 1
                _log.warning("lifecycle_session_lost", extra={"error": repr(error), "attempt": attempt})
                await wait_for(self._stopping.wait(), _BACKOFF_S[min(attempt, len(_BACKOFF_S) - 1)])

    def stop(self) -> None:
        """Ask `run` to end. Idempotent."""
        self._stopping.set()

    def not_alive(self) -> str | None:
        """What a restart would mend, or None. May be called from any thread."""
        idle_s = time.monotonic() - self._progress_at
        return f"no progress on lifecycle events for {idle_s:.0f} s" if idle_s > 2 * _STUCK_S else None

    def not_ready(self) -> str | None:
        """Why events are not applied now, or None. May be called from any thread."""
        return None if self._joined and self._problem is None else f"lifecycle events: {self._problem}"

    # A session: one membership in the group -------------------------------------------------------

    async def _session(self) -> None:
        self._progress_at = time.monotonic()
        topics = self._kafka.topics
        client = member(self._kafka, self._group)
        client.subscribe(topics=[topics.events, topics.results], listener=_Listener(self, client))
        try:
            await client.start()
            _log.info("lifecycle_session_began", extra={"group": self._group})
            while not self._stopping.is_set():
                await self._step(client)
                self._progress_at = time.monotonic()
        finally:
            self._joined = False
            self._assignment = self._new_assignment(())
            await wait_for(client.stop(), _STOP_S)

    async def _step(self, client: Any) -> None:
        try:
            await self._batch(client)
        except RedisLostDataError:
            _log.warning("redis_lost_data", extra={"known": dict(self._assignment.known)})
            self.on_assigned(client, client.assignment())
        self._joined, self._problem = True, None

    async def _batch(self, client: Any) -> None:
        assignment = self._assignment
        await self._position(client, assignment)
        await self._reads.turn()
        now = time.monotonic()
        client.gather(self._reads.min_bytes(now=now))
        timeout_ms = self._reads.timeout_ms(assignment.held.due_in(now=now), now=now)
        # getmany waits without bound while a rebalance is under way: as a task it can be ended.
        fetch = asyncio.ensure_future(client.getmany(timeout_ms=timeout_ms, max_records=RECORDS_MAX))
        await asyncio.wait({fetch}, timeout=_STUCK_S)
        if not fetch.done():
            fetch.cancel()
            raise KafkaError("no assignment in time: joining the group again")
        batches: Mapping[TopicPartition, Sequence[Any]] = {
            tp: records
            for tp, records in fetch.result().items()
            if self._assignment is assignment and tp not in assignment.unpositioned
        }
        sizes = [record.serialized_value_size for records in batches.values() for record in records]
        self._reads.brought(sizes, now=time.monotonic())
        if batches or len(assignment.held):
            # Before anything is added: what Redis lost comes first, above all before a stream's end.
            self._audience.elsewhere = await self._store.advance([], known=assignment.known)
        changed = await self._apply_events(assignment, batches)
        await self._hold_outcomes(client, assignment, batches)
        changed += await self._apply_outcomes(client, assignment)
        await self._advance(assignment, changed)
        self._limit_held(client, assignment)
        self.lag = sum(
            max(0, (client.highwater(tp) or 0) - assignment.known.get(_name(tp), 0))
            for tp in client.assignment()
        )

    async def _position(self, client: Any, assignment: _Assignment) -> None:
        """Go on where Redis says that newly assigned partitions are."""
        fresh = assignment.unpositioned & client.assignment()
        if not fresh:
            return
        stored = await self._store.offsets()
        ends: Mapping[TopicPartition, int] = await client.end_offsets(list(fresh))
        for tp in fresh:
            offset = stored.get(_name(tp))
            if offset is not None and offset > ends[tp]:
                # The topic was made anew: offsets of the old one mean nothing.
                _log.warning("offset_beyond_end", extra={"partition": _name(tp), "offset": offset})
                await self._store.forget_offset(_name(tp))
                offset = None
            assignment.known[_name(tp)] = offset or 0
            if offset is None:
                await client.seek_to_beginning(tp)
            else:
                client.seek(tp, offset)
            assignment.progress[_name(tp)] = Progress()
        client.resume(*fresh)
        assignment.unpositioned -= fresh
        _log.info("partitions_positioned", extra={"count": len(fresh)})

    def on_assigned(self, client: Any, partitions: Iterable[TopicPartition]) -> None:
        """Nothing is read of a partition before it was positioned. Called by aiokafka."""
        self._assignment = self._new_assignment(partitions)
        client.pause(*self._assignment.unpositioned)

    def _new_assignment(self, partitions: Iterable[TopicPartition]) -> _Assignment:
        return _Assignment(HeldOutcomes(turns_close_s=self._settings.turns_close_s), set(partitions))

    # One batch ------------------------------------------------------------------------------------

    async def _apply_events(
        self, assignment: _Assignment, batches: Mapping[TopicPartition, Sequence[Any]]
    ) -> list[Step]:
        read: list[tuple[str, int, Change]] = []
        began_ns = time.time_ns()
        for tp, records in batches.items():
            if tp.topic != self._kafka.topics.events:
                continue
            progress = assignment.progress[_name(tp)]
            for record in records:
                progress.admit(record.offset)
                change = await self._read(record)
                if change is None or change.ends:
                    progress.finish(Step(_name(tp), record.offset))
                else:
                    read.append((_name(tp), record.offset, change))
        more: Mode = "more"
        applied = await self._store.apply([(change, more) for _, _, change in read])
        return [
            self._finish(assignment, partition, offset, change, result, began_ns)
            for (partition, offset, change), result in zip(read, applied, strict=True)
        ]

    async def _hold_outcomes(
        self, client: Any, assignment: _Assignment, batches: Mapping[TopicPartition, Sequence[Any]]
    ) -> None:
        read: list[tuple[str, Any, Change]] = []
        for tp, records in batches.items():
            if tp.topic != self._kafka.topics.results:
                continue
            progress = assignment.progress[_name(tp)]
            for record in records:
                progress.admit(record.offset)
                change = await self._read(record)
                if change is None or not change.ends:
                    progress.finish(Step(_name(tp), record.offset))
                else:
                    read.append((_name(tp), record, change))
        if not read:
            return
        events = {change.run_id: self._events_partition(client, change.run_id) for _, _, change in read}
        wanted = {tp for tp in events.values() if tp is not None}
        ends: Mapping[TopicPartition, int] = await client.end_offsets(list(wanted)) if wanted else {}
        now, wall_ms = time.monotonic(), time.time() * 1000
        for partition, record, change in read:
            tp = events[change.run_id]
            barrier = None if tp is None else (_name(tp), ends[tp])
            age_ms = max(0.0, wall_ms - record.timestamp)
            due_at = now + max(0.0, self._settings.settle_ms - age_ms) / 1000
            held = Held(partition, record.offset, change, barrier, due_at, taken_ns=int(wall_ms * 1_000_000))
            assignment.held.add(held, now=now)

    async def _apply_outcomes(self, client: Any, assignment: _Assignment) -> list[Step]:
        if not len(assignment.held):
            return []
        positions = await self._positions(client, assignment.held.barriers())
        ready = assignment.held.ready(positions, now=time.monotonic())
        applied = await self._store.apply([(held.change, mode) for held, mode in ready])
        steps: list[Step] = []
        for (held, _), result in zip(ready, applied, strict=True):
            if result.status == "open":
                continue
            steps.append(
                self._finish(assignment, held.partition, held.offset, held.change, result, held.taken_ns)
            )
            assignment.held.release(held)
        return steps

    def _finish(
        self,
        assignment: _Assignment,
        partition: str,
        offset: int,
        change: Change,
        result: Applied,
        began_ns: int,
    ) -> Step:
        if result.status == "refused":
            _log.error("event_refused", extra={"event_id": change.event_id, "error": result.problem})
        step = Step(partition, offset, change, result)
        assignment.progress[partition].finish(step)
        note_applied(change, partition, offset, began_ns, group=self._group)
        return step

    async def _positions(self, client: Any, partitions: set[str]) -> Mapping[str, int]:
        assigned = {_name(tp): tp for tp in client.assignment()}
        positions: dict[str, int] = {}
        if any(name not in assigned for name in partitions):
            positions.update(await self._store.offsets())
        for name in partitions & assigned.keys():
            positions[name] = await client.position(assigned[name])
        return positions

    async def _advance(self, assignment: _Assignment, changed: Sequence[Step]) -> None:
        # What an outcome waited for comes before it in the stream of all runs too.
        outcomes = f"{self._kafka.topics.results}:"
        partitions = sorted(assignment.progress, key=lambda partition: partition.startswith(outcomes))
        steps = [step for partition in partitions for step in assignment.progress[partition].drain()]
        now = time.monotonic()
        if not steps and not changed and now - self._checked_at < _CHECK_S:
            return
        # Without steps too: a restart of Redis while nothing happens may have lost what happened last.
        listened = await self._store.advance(steps, known=assignment.known, changed=changed)
        self._audience.elsewhere = listened
        self._checked_at = now
        assignment.known.update((step.partition, step.offset + 1) for step in steps)
        self.applied += len(steps)

    def _limit_held(self, client: Any, assignment: _Assignment) -> None:
        results = {tp for tp in client.assignment() if tp.topic == self._kafka.topics.results}
        if len(assignment.held) > _HELD_MAX or assignment.held.size_chars > _HELD_CHARS_MAX:
            client.pause(*results)
        else:
            client.resume(*(results & client.paused() - assignment.unpositioned))

    async def _read(self, record: Any) -> Change | None:
        try:
            event = decode(key=record.key, value=record.value, headers=record.headers)
        except DataElsewhereError as elsewhere:
            known = project_reference(elsewhere, recorded_ms=record.timestamp)
            return known or await self._fetch(record)
        except DecodeError as error:
            return self._undecodable(record, error)
        return project(event, recorded_ms=record.timestamp)

    async def _fetch(self, record: Any) -> Change | None:
        """What a record changes whose data is in the payload store, however long that is away."""
        for attempt in itertools.count():
            try:
                event = await decode_resolved(
                    self._payloads, key=record.key, value=record.value, headers=record.headers
                )
            except DecodeError as error:
                return self._undecodable(record, error)
            except PayloadStoreAwayError as error:
                self._problem = str(error)
                self._progress_at = time.monotonic()
                _log.warning("payload_store_away", extra={"attempt": attempt + 1, "error": str(error)})
                await asyncio.sleep(_BACKOFF_S[min(attempt, len(_BACKOFF_S) - 1)])
            else:
                return project(event, recorded_ms=record.timestamp)
        raise AssertionError("unreachable")

    def _undecodable(self, record: Any, error: DecodeError) -> None:
        self.undecodable += 1
        _log.warning(
            "not_an_event",
            extra={
                "topic": record.topic,
                "partition": record.partition,
                "offset": record.offset,
                "reason": error.reason,
                "error": str(error),
            },
        )

    def _events_partition(self, client: Any, run_id: str) -> TopicPartition | None:
        topic = self._kafka.topics.events
        count = len(client.partitions_for_topic(topic) or ())
        if not count:
            return None
        # As every Kafka client's default partitioner for a keyed record.
        return TopicPartition(topic, (murmur2(run_id.encode()) & 0x7FFFFFFF) % count)


class _Listener(ConsumerRebalanceListener):
    def __init__(self, consumer: LifecycleConsumer, client: Any) -> None:
        self._consumer = consumer
        self._client = client

    def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        """Nothing to give back: what was applied is applied, the rest is read again by the next owner."""

    def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        self._consumer.on_assigned(self._client, assigned)


def _name(tp: TopicPartition) -> str:
    return f"{tp.topic}:{tp.partition}"
