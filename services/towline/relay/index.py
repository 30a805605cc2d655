"""Lookups of runs and approvals in Redis."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, cast
from uuid import uuid4

import redis
from pydantic import AllowInfNan, TypeAdapter
from redis.asyncio import Redis

from towline.contracts.payload_reference import DATAREF
from towline.contracts.redis_errors import is_redis_away, redis_problem
from towline.contracts.stream import DATA_FIELD, TYPE_FIELD
from towline.relay.errors import RedisAwayError
from towline.relay.keys import Keys
from towline.relay.problems import ProblemError
from towline.relay.projection import dumps, ending

_TEMPORARY_S: Final = 10
_SCAN_MAX: Final = 2_000
_CURSOR: Final = TypeAdapter(tuple[str, Annotated[float, AllowInfNan(False)]])


@dataclass(frozen=True, slots=True)
class RunFilter:
    """Which runs are wanted; all given must hold."""

    status: str | None = None
    run_type: str | None = None
    tags: tuple[str, ...] = ()
    """``name=value`` each."""

    def keys(self, keys: Keys) -> list[str]:
        """The sorted sets whose intersection it is."""
        wanted = [keys.facet("tag", tag) for tag in self.tags]
        if self.status is not None:
            wanted.append(keys.facet("status", self.status))
        if self.run_type is not None:
            wanted.append(keys.facet("type", self.run_type))
        return wanted or [keys.all_runs]


class RunIndex:
    """Reads the index that `store` writes."""

    def __init__(self, client: Redis, keys: Keys) -> None:
        self._redis = cast("Any", client)
        self._keys = keys

    async def known(self, run_id: str) -> bool:
        """Whether anything was ever heard of the run.

        Raises:
            RedisAwayError: Redis does not answer. So for all methods.
        """
        return bool(await self._guard(self._redis.exists(self._keys.run(run_id), self._keys.stream(run_id))))

    async def run(self, run_id: str) -> dict[str, Any] | None:
        """The run with its approvals, or None."""
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.hgetall(self._keys.run(run_id))
        pipeline.hgetall(self._keys.approvals(run_id))
        fields, approvals = await self._guard(pipeline.execute())
        if not fields:
            return None
        return {**_run(run_id, fields), "approvals": _approvals(approvals)}

    async def runs(
        self, wanted: RunFilter, *, limit: int, cursor: str | None
    ) -> tuple[list[dict[str, Any]], str | None]:
        """Runs, newest first, and the cursor of the next page if there is one.

        Raises:
            ProblemError: `cursor` is none of ours.
        """
        keys = wanted.keys(self._keys)
        key = keys[0]
        if len(keys) > 1:
            key = self._keys.temporary(uuid4().hex)
            pipeline = self._redis.pipeline(transaction=True)
            pipeline.zinterstore(key, keys, aggregate="MAX")
            pipeline.expire(key, _TEMPORARY_S)
            await self._guard(pipeline.execute())
        found = await self._page(key, limit + 1, cursor)
        page, more = found[:limit], len(found) > limit
        runs = await self._summaries([run_id for run_id, _ in page])
        next_cursor = _encode_cursor(*page[-1]) if more else None
        # A run whose keys expired is still in the index until it is pruned.
        return [run for run in runs if run is not None], next_cursor

    async def open_approvals(
        self, wanted: RunFilter, *, limit: int, cursor: str | None
    ) -> tuple[list[dict[str, Any]], str | None]:
        """Open approval requests, newest first, and the cursor of the next page.

        Raises:
            ProblemError: `cursor` is none of ours.
        """
        found: list[dict[str, Any]] = []
        scanned = 0
        while scanned < _SCAN_MAX:
            page = await self._page(self._keys.open_approvals, 100, cursor)
            for member, score in page:
                cursor = _encode_cursor(member, score)
                scanned += 1
                run_id, _, approval_id = member.partition(" ")
                approval = await self._open_approval(run_id, approval_id, wanted)
                if approval is not None:
                    found.append(approval)
                    if len(found) == limit:
                        return found, cursor
            if len(page) < 100:
                return found, None
        return found, cursor

    async def approvals_waiting(self) -> tuple[int, int | None]:
        """How many approvals are open, and when the oldest was requested (Unix time in ms)."""
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.zcard(self._keys.open_approvals)
        pipeline.zrange(self._keys.open_approvals, 0, 0, withscores=True)
        count, oldest = await self._guard(pipeline.execute())
        return int(count), int(oldest[0][1]) if oldest else None

    async def _open_approval(self, run_id: str, approval_id: str, wanted: RunFilter) -> dict[str, Any] | None:
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.hmget(self._keys.approvals(run_id), f"requested:{approval_id}", f"status:{approval_id}")
        pipeline.hmget(self._keys.run(run_id), "run_type", "tags", "status")
        (requested, status), (run_type, tags, run_status) = await self._guard(pipeline.execute())
        if requested is None or status != "open" or not _matches(wanted, run_status, run_type, tags):
            return None
        return {**_approval(approval_id, requested, status, None), "run_id": run_id, "run_type": run_type}

    async def _page(self, key: str, count: int, cursor: str | None) -> list[tuple[str, float]]:
        if cursor is None:
            return await self._guard(self._redis.zrange(key, 0, count - 1, desc=True, withscores=True))
        member, score = _decode_cursor(cursor)
        rank = await self._guard(self._redis.zrevrank(key, member))
        if rank is not None:
            begin = rank + 1
            return await self._guard(
                self._redis.zrange(key, begin, begin + count - 1, desc=True, withscores=True)
            )
        # It left the set meanwhile: go on where it was, among those of its time and then below.
        pipeline = self._redis.pipeline(transaction=True)
        pipeline.zrevrangebyscore(key, score, score, withscores=True)
        pipeline.zrevrangebyscore(key, f"({score}", "-inf", start=0, num=count, withscores=True)
        same, below = await self._guard(pipeline.execute())
        return [*(pair for pair in same if pair[0] < member), *below][:count]

    async def _summaries(self, run_ids: Sequence[str]) -> list[dict[str, Any] | None]:
        if not run_ids:
            return []
        pipeline = self._redis.pipeline(transaction=False)
        for run_id in run_ids:
            pipeline.hmget(self._keys.run(run_id), *_SUMMARY_FIELDS)
        answers = await self._guard(pipeline.execute())
        summaries: list[dict[str, Any] | None] = []
        for run_id, values in zip(run_ids, answers, strict=True):
            fields = {n: v for n, v in zip(_SUMMARY_FIELDS, values, strict=True) if v is not None}
            summaries.append(_run(run_id, fields) if fields else None)
        return summaries

    async def ending(self, run_id: str) -> tuple[str, dict[str, str]] | None:
        """The entry that ended the run's stream, if the stream has expired since; else None."""
        keys = self._keys
        # In one step: a stream that comes to be meanwhile is read from its beginning.
        pipeline = self._redis.pipeline(transaction=True)
        pipeline.exists(keys.stream(run_id))
        pipeline.hget(keys.turns(run_id), "ended")
        pipeline.hmget(keys.run(run_id), "status", "outcome")
        exists, entry_id, (status, outcome) = await self._guard(pipeline.execute())
        if exists or entry_id is None or outcome is None:
            return None
        kind, data = ending(status, json.loads(outcome))
        return entry_id, {TYPE_FIELD: kind, DATA_FIELD: dumps(data)}

    async def facts(self, run_id: str) -> tuple[str, str]:
        """Run type and tags (JSON), each empty if unknown."""
        run_type, tags = await self._guard(self._redis.hmget(self._keys.run(run_id), "run_type", "tags"))
        return run_type or "", tags or ""

    async def session(self, run_id: str) -> str | None:
        """The run's session, if it is known."""
        return await self._guard(self._redis.hget(self._keys.run(run_id), "session_id"))

    async def newest_event(self) -> str:
        """Id of the newest entry of the stream of all runs."""
        entries = await self._guard(self._redis.xrevrange(self._keys.events, count=1))
        return entries[0][0] if entries else "0-0"

    async def _guard(self, work: Any) -> Any:
        try:
            return await work
        except (redis.RedisError, OSError) as error:
            if is_redis_away(error):
                raise RedisAwayError(redis_problem(error)) from error
            raise


_SUMMARY_FIELDS: Final = (
    "status",
    "run_type",
    "session_id",
    "requested_by",
    "tags",
    "created_ms",
    "updated_ms",
    "started_at",
    "finished_at",
    "traceparent",
)


def _matches(wanted: RunFilter, status: str | None, run_type: str | None, tags: str | None) -> bool:
    if wanted.status is not None and status != wanted.status:
        return False
    if wanted.run_type is not None and run_type != wanted.run_type:
        return False
    have: Mapping[str, str] = json.loads(tags) if tags else {}
    return all(have.get(name) == value for name, _, value in (tag.partition("=") for tag in wanted.tags))


def _run(run_id: str, fields: Mapping[str, str]) -> dict[str, Any]:
    run: dict[str, Any] = {"run_id": run_id}
    for name in ("run_type", "status", "session_id", "requested_by", "started_at", "finished_at"):
        if name in fields:
            run[name] = fields[name]
    if "tags" in fields:
        run["tags"] = json.loads(fields["tags"])
    for name in ("created_ms", "updated_ms"):
        if name in fields:
            run[name] = int(fields[name])
    if "custom_status" in fields:
        run["custom_status"] = json.loads(fields["custom_status"])
    if "outcome" in fields:
        outcome: dict[str, Any] = json.loads(fields["outcome"])
        for name in ("output", "error", "reason", "usage", DATAREF):
            if name in outcome:
                run[name] = outcome[name]
        if run.get("status") == "completed" and DATAREF not in run:
            run.setdefault("output", None)
    # "00-<trace id>-<span id>-<flags>"
    traceparent = fields.get("traceparent", "").split("-")
    if len(traceparent) == 4:
        run["trace_id"] = traceparent[1]
    return run


def _approvals(fields: Mapping[str, str]) -> list[dict[str, Any]]:
    approvals = [
        _approval(name.partition(":")[2], value, fields.get(f"status:{name.partition(':')[2]}", "open"),
                  fields.get(f"resolved:{name.partition(':')[2]}"))
        for name, value in fields.items()
        if name.startswith("requested:")
    ]  # fmt: skip
    return sorted(approvals, key=lambda approval: approval.get("requested_ms", 0))


def _approval(approval_id: str, requested: str, status: str, resolved: str | None) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(requested)
    data.pop("run_id", None)
    approval: dict[str, Any] = {
        "approval_id": approval_id,
        "status": status,
        **{name: value for name, value in data.items() if name not in ("time_ms", "approval_id")},
        "requested_ms": data.get("time_ms", 0),
    }
    if resolved is not None:
        answer: dict[str, Any] = json.loads(resolved)
        approval["resolved_ms"] = answer.get("time_ms", 0)
        approval.update({n: answer[n] for n in ("outcome", "approver", "feedback") if n in answer})
    return approval


def _encode_cursor(member: str, score: float) -> str:
    return base64.urlsafe_b64encode(json.dumps([member, score]).encode()).decode().rstrip("=")


def _decode_cursor(cursor: str) -> tuple[str, float]:
    try:
        raw = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
        return _CURSOR.validate_json(raw)
    except ValueError as error:
        raise ProblemError(
            400,
            "invalid_cursor",
            "cursor: not one that this API gave out; leave it out",
        ) from error
