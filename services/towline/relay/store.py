"""Writes what events change: the runs' streams and hashes, then the index and the offsets.

A crash between any two steps repeats them: each recognises what it has done.
"""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final, Literal, TypeAlias, cast
from uuid import uuid4

import redis
from redis.asyncio import Redis

from towline.contracts.redis_errors import is_redis_away, redis_problem
from towline.relay.errors import RedisAwayError, RedisLostDataError
from towline.relay.keys import Keys
from towline.relay.projection import RUN_STATUSES, Change, dumps, milliseconds
from towline.relay.redis_client import Queue, Script
from towline.relay.settings import RelaySettings

Mode: TypeAlias = Literal["more", "end", "force"]
ApplyStatus: TypeAlias = Literal["applied", "repeated", "unknown", "late", "open", "refused"]

_EVENTS_ENTRIES_MAX: Final = 50_000
_PRUNE_COUNT: Final = 500
_LISTENED_MS: Final = 5_000
_OVERTAKEN: Final = 2
"""What `advance.lua` answers if another relay has moved an offset on."""


@dataclass(frozen=True, slots=True)
class Applied:
    """The run as it is after a change."""

    status: ApplyStatus
    created_ms: int = 0
    run_status: str = ""
    run_type: str = ""
    tags: str = ""
    """JSON, or empty."""
    open_approvals: tuple[str, ...] = ()
    closed_approvals: tuple[str, ...] = ()
    """Those that were open when the run ended."""
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Step:
    """One record that is done with: what it adds to the stream of all runs."""

    partition: str
    offset: int
    change: Change | None = None
    applied: Applied | None = None


class RunStore:
    """The relay's writes to Redis."""

    def __init__(self, client: Redis, settings: RelaySettings, keys: Keys) -> None:
        self._redis = client
        self._named = keys
        self._settings = settings
        self._apply = Script("apply")
        self._advance = Script("advance")
        self._pending = Script("pending")
        self._file = Script("file")
        self._prune = Script("prune")
        self._mark_key = keys.mark(uuid4().hex)
        self._mark: int | None = None
        """What our mark in Redis was last: with it goes what was applied and is not behind an offset yet."""

    async def apply(self, changes: Sequence[tuple[Change, Mode]]) -> list[Applied]:
        """Apply changes in order, at most once each. `advance` must be told of them.

        Raises:
            RedisAwayError: Some of them may have been applied: repeat them all.
            RedisLostDataError: So too, and of what was applied before some is lost.
        """
        if not changes:
            return []
        calls = [(self._keys(change.run_id), self._arguments(change, mode)) for change, mode in changes]
        known, self._mark = self._mark, None
        *answers, mark, _ = await self._guard(self._apply.call_many(self._redis, calls, then=self._count))
        applied = [_applied(answer) for answer in answers]
        if isinstance(mark, Exception):
            raise RedisAwayError(f"Redis does not count: {mark}") from mark
        if known is not None and mark != known + 1:
            raise RedisLostDataError("Redis lost what was applied last")
        self._mark = mark
        return applied

    def _count(self, pipeline: Any) -> None:
        pipeline.incr(self._mark_key)
        pipeline.expire(self._mark_key, self._settings.ttl_s)

    async def advance(
        self,
        steps: Sequence[Step],
        *,
        known: Mapping[str, int],
        changed: Sequence[Step] = (),
    ) -> bool:
        """Move offsets past `steps`, adding each to the stream of all runs, and bring the index up to date.

        Args:
            steps: In order, by partition.
            known: Offsets that Redis has had, by partition.
            changed: What was applied, in order; an outcome may be done before one that comes before it, and
                is among `steps` only after that.

        Returns:
            Whether somebody listens to this relay or another: see `note_listened`.

        Raises:
            RedisAwayError: Nothing or all of it was done.
            RedisLostDataError: Nothing was done: Redis is older than `known`, or than what was applied.
        """
        mark, self._mark = self._mark or 0, None
        arguments: list[str | int] = [_EVENTS_ENTRIES_MAX, self._named.events_channel, mark, len(known)]
        for pair in known.items():
            arguments += pair
        for step in steps:
            change, applied = step.change, step.applied or Applied("refused")
            if change is None:
                arguments += [step.partition, step.offset, "", "", "", "", "", ""]
            else:
                arguments += [step.partition, step.offset, change.event_id, change.event_type, change.run_id]
                arguments += [applied.run_type, applied.tags, dumps(change.raw)]
        keys = [self._named.events, self._named.offsets, self._mark_key, self._named.listened]
        after = self._index(changed)
        done, listened = await self._guard(self._advance.call(self._redis, keys, arguments, after=after))
        if done == 0:
            raise RedisLostDataError("Redis lost its newest data")
        self._mark = mark or None
        if done == _OVERTAKEN:
            await self._index_anew(changed)
        return listened == 1

    async def note_listened(self) -> None:
        """Have all relays know for the next 5 s that somebody listens to this one.

        Raises:
            RedisAwayError: They may not know.
        """
        await self._guard(cast("Any", self._redis).set(self._named.listened, 1, px=_LISTENED_MS))

    async def _index_anew(self, changed: Sequence[Step]) -> None:
        """Another relay has moved on what was ours: the index may know of something newer than we wrote.

        Who reads what a run is, writes that and finds it unchanged wrote the newest, or before one who does.
        """
        changes = [(step.change, step) for step in changed if step.change is not None and _counts(step)]
        written: list[Applied] | None = None
        while changes:
            known = await self.apply([(change, "end" if change.ends else "more") for change, _ in changes])
            if known == written:
                return
            pairs = zip(changes, known, strict=True)
            queue = self._index([replace(step, applied=applied) for (_, step), applied in pairs])
            if queue is not None:
                pipeline = cast("Any", self._redis).pipeline(transaction=True)
                queue(pipeline)
                await self._guard(pipeline.execute())
            written = known

    async def offsets(self) -> Mapping[str, int]:
        """Next offset to apply by partition ("topic:number"); empty when Redis is new or lost its data.

        Raises:
            RedisAwayError: Redis does not answer.
        """
        raw = await self._guard(cast("Any", self._redis).hgetall(self._named.offsets))
        return {partition: int(offset) for partition, offset in raw.items()}

    async def forget_offset(self, partition: str) -> None:
        """Read `partition` from its beginning: Kafka has less than what was applied."""
        await self._guard(cast("Any", self._redis).hdel(self._named.offsets, partition))

    async def note_requested(self, run_id: str, fields: Mapping[str, str], *, now: datetime) -> None:
        """Make a run known that was asked for over HTTP, before its first event.

        Raises:
            RedisAwayError: It is not known yet; its events will make it so.
        """
        time_ms = milliseconds(now)
        flat = [part for pair in {"status": "pending", **fields}.items() for part in pair]
        new = await self._guard(
            self._pending.call(self._redis, [self._named.run(run_id)], [self._settings.ttl_s, time_ms, *flat])
        )
        if new == 1:
            applied = Applied(
                "applied", time_ms, "pending", fields.get("run_type", ""), fields.get("tags", "")
            )
            keys = [self._named.all_runs, self._named.facets, *_facets(self._named, applied)]
            await self._guard(self._file.call(self._redis, keys, [run_id, time_ms]))

    async def claim(self, event_id: str, digest: str) -> bool:
        """Whether `event_id`, which follows from an idempotency key, is new or was used for the same content.

        Raises:
            RedisAwayError: It is not known.
        """
        pipeline = cast("Any", self._redis).pipeline(transaction=False)
        pipeline.set(self._named.claim(event_id), digest, nx=True, ex=self._settings.ttl_s)
        pipeline.get(self._named.claim(event_id))
        _, known = await self._guard(pipeline.execute())
        return known is None or known == digest

    async def prune(self, *, before_ms: int) -> None:
        """Take runs that began before `before_ms` out of the index, once their keys have expired.

        Raises:
            RedisAwayError: Try again later.
        """
        facets = self._named.facets
        keys, cursor = [self._named.all_runs, self._named.open_approvals], -1
        # Keys live from their last write on: a run that goes on outlives its index otherwise.
        stay = sorted({run_id for key in keys async for run_id in self._old_but_kept(key, before_ms)})
        while cursor != 0:
            # By pages: with tags that only one run has there are as many sets as runs.
            scan = cast("Any", self._redis).sscan(facets, max(cursor, 0), count=_PRUNE_COUNT)
            cursor, found = await self._guard(scan)
            arguments = [before_ms, *stay]
            await self._guard(self._prune.call(self._redis, [facets, *keys, *found], arguments))
            keys = []

    async def _old_but_kept(self, key: str, before_ms: int) -> AsyncIterator[str]:
        client = cast("Any", self._redis)
        begin, count = -math.inf, _PRUNE_COUNT
        while True:
            page = await self._guard(
                client.zrangebyscore(key, begin, before_ms, start=0, num=count, withscores=True)
            )
            run_ids = list({member.partition(" ")[0] for member, _ in page})
            pipeline = client.pipeline(transaction=False)
            for run_id in run_ids:
                pipeline.exists(self._named.run(run_id))
            for run_id, kept in zip(run_ids, await self._guard(pipeline.execute()), strict=True):
                if kept:
                    yield run_id
            if len(page) < count:
                return
            # By score, not by rank: another relay may be pruning too. Those of the last score come once more.
            last = page[-1][1]
            begin, count = last, 2 * count if last == begin else _PRUNE_COUNT

    def _index(self, changed: Iterable[Step]) -> Queue | None:
        latest: dict[str, Applied] = {}
        requested: dict[tuple[str, str], int] = {}
        touched: set[tuple[str, str]] = set()
        for step in changed:
            change, applied = step.change, step.applied
            if change is None or applied is None or not _counts(step):
                continue
            latest[change.run_id] = applied
            if change.approval_id is not None:
                touched.add((change.run_id, change.approval_id))
                if change.approval == "requested":
                    requested[change.run_id, change.approval_id] = change.time_ms
            if change.ends:
                touched.update((change.run_id, approval_id) for approval_id in applied.closed_approvals)
        if not latest:
            return None

        def queue(pipeline: Any) -> None:
            _queue_index(pipeline, self._named, latest)
            for run_id, approval_id in touched | set(requested):
                member = f"{run_id} {approval_id}"
                if approval_id in latest[run_id].open_approvals:
                    if (time_ms := requested.get((run_id, approval_id))) is not None:
                        pipeline.zadd(self._named.open_approvals, {member: time_ms})
                else:
                    pipeline.zrem(self._named.open_approvals, member)

        return queue

    def _keys(self, run_id: str) -> list[str]:
        keys = self._named
        return [
            keys.stream(run_id),
            keys.turns(run_id),
            keys.run(run_id),
            keys.approvals(run_id),
            keys.written(run_id),
        ]

    def _arguments(self, change: Change, mode: Mode) -> list[str | int]:
        settings = self._settings
        fields = {"run_id": change.run_id, **change.fields}
        how = "known" if change.refuses else mode
        return [
            *(change.event_id, how, settings.ttl_s, settings.ended_ttl_s, settings.entries_max),
            *(self._named.wake(change.run_id), change.time_ms, change.entry, dumps(change.data)),
            *(change.approval_id or "", change.approval, dumps({"time_ms": change.time_ms, **change.raw})),
            "" if change.progress is None else change.progress,
            *(part for pair in fields.items() for part in pair),
        ]

    async def _guard(self, work: Any) -> Any:
        try:
            return await work
        except (redis.RedisError, OSError) as error:
            if is_redis_away(error):
                raise RedisAwayError(redis_problem(error)) from error
            raise


def _counts(step: Step) -> bool:
    """Whether it says what a run is."""
    return step.applied is not None and step.applied.status not in ("open", "refused", "unknown")


def _applied(answer: Any) -> Applied:
    if isinstance(answer, Exception):
        if is_redis_away(answer):
            raise RedisAwayError(redis_problem(answer)) from answer
        return Applied("refused", problem=repr(answer))
    status, created_ms, run_status, run_type, tags, *approvals = answer
    return Applied(
        status,
        int(created_ms),
        run_status,
        run_type,
        tags,
        tuple(each.removeprefix("open:") for each in approvals if each.startswith("open:")),
        tuple(each.removeprefix("closed:") for each in approvals if each.startswith("closed:")),
    )


def _queue_index(pipeline: Any, keys: Keys, runs: Mapping[str, Applied]) -> None:
    """One command a key, not one a run: under load that is most of what the relay would do."""
    added: dict[str, dict[str, int]] = {keys.all_runs: {}}
    removed: dict[str, list[str]] = {}
    for run_id, applied in runs.items():
        for key in (keys.all_runs, *_facets(keys, applied)):
            added.setdefault(key, {})[run_id] = applied.created_ms
        for status in RUN_STATUSES:
            if status != applied.run_status:
                removed.setdefault(keys.facet("status", status), []).append(run_id)
    for key, scores in added.items():
        pipeline.zadd(key, scores)
    for key, members in removed.items():
        pipeline.zrem(key, *members)
    if facets := added.keys() - {keys.all_runs}:
        pipeline.sadd(keys.facets, *facets)


def _facets(keys: Keys, applied: Applied) -> list[str]:
    facets = [keys.facet("status", applied.run_status)] if applied.run_status else []
    if applied.run_type:
        facets.append(keys.facet("type", applied.run_type))
    return facets + [keys.facet("tag", tag) for tag in tag_names(applied.tags)]


def tag_names(tags: str) -> list[str]:
    """``name=value`` of each tag in the JSON object `tags`."""
    return [f"{name}={value}" for name, value in json.loads(tags).items()] if tags else []
