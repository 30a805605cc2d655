"""Puts engine, store and workers together: every change goes through here.

All of it runs on one event loop. An operation changes the state in memory and the open batch in one go,
without awaiting; what follows from it (work handed out, waiters woken, the answer to the caller) waits for
the commit.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from durabletask.internal import orchestrator_service_pb2 as pb

from towline.scheduler.engine import entities, events, tasks, turns, wire
from towline.scheduler.engine.changes import Changes
from towline.scheduler.engine.errors import SchedulerError
from towline.scheduler.engine.model import Activity, Batch, Entity, Instance, Timer
from towline.scheduler.engine.ports import Limits
from towline.scheduler.server.clock import Clock
from towline.scheduler.server.dispatch import Dispatcher, Kind, Stream, Subject, Work
from towline.scheduler.server.timers import Timers
from towline.scheduler.server.tokens import Tokens
from towline.scheduler.server.waiters import Waiters
from towline.scheduler.server.world import CacheLimits, MemoryWorld
from towline.scheduler.store.database import connect
from towline.scheduler.store.journal import Journal
from towline.scheduler.store.rows import Loader, activity_of
from towline.scheduler.store.statements import SQL

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

DEFAULT_HUB = "default"
_LEASE_MARK_S = 0.05
"""Time within which the note that work was handed out is written, when nothing else is."""
_BACKOFF_S = (0.2, 30.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Leases:
    """How long a worker may keep what it was given, in seconds."""

    orchestration_s: float = 60.0
    activity_s: float = 14_400.0
    entity_s: float = 14_400.0
    grace_s: float = 5.0
    """Time after a stream breaks in which its worker may still answer for activities and entity batches."""
    reconnect_s: float = 60.0
    """The same, once that worker has opened a new stream."""


class Runtime:
    """The scheduler without its network."""

    def __init__(
        self,
        path: Path,
        writer: sqlite3.Connection,
        *,
        limits: Limits,
        cache: CacheLimits,
        leases: Leases,
        test_clock: bool,
    ) -> None:
        self.path = path
        self.leases = leases
        self.stale_completions = 0
        self.test_clock = test_clock
        self._writer = writer
        self._reader = connect(path, readonly=True)
        self._loader = Loader(self._reader)
        self._loop = asyncio.get_running_loop()
        offset = int(self._loader.meta("clock_offset_us") or 0) if test_clock else 0
        self.clock = Clock(offset)
        self.world = MemoryWorld(self._loader, limits, cache)
        self.journal = Journal(writer, on_commit=self._committed, on_failure=self._failed)
        self.world.changes = lambda: self.journal.changes
        self.dispatcher = Dispatcher()
        self.waiters = Waiters()
        self.timers = Timers(self._reader, self.clock.now, self._fire)
        self.timers.idle = lambda: self.journal.settled
        self.hubs: dict[str, int] = {}
        self.doomed_hubs: set[int] = set()
        self._tokens = Tokens(self._secret())
        self._turn_work: dict[str, tuple[Stream, Work]] = {}
        self._encoders: dict[Kind, Callable[[Work], bytes | None]] = {
            Kind.ORCHESTRATION: self._encode_turn,
            Kind.ACTIVITY: self._encode_activity,
            Kind.ENTITY: self._encode_batch,
        }
        self._losers: dict[Kind, Callable[[Work, Changes, int, bool], bool]] = {
            Kind.ORCHESTRATION: self._lose_turn,
            Kind.ACTIVITY: self._lose_activity,
            Kind.ENTITY: self._lose_batch,
        }
        self._backoff: dict[tuple[Kind, object], float] = {}
        self._signals: dict[tuple[int, str], Changes] = {}
        """Signals that are accepted and not yet committed, with their batch."""

    def _secret(self) -> bytes:
        stored = self._loader.meta("secret")
        if stored is None:
            stored = secrets.token_hex(16)
            self.journal.changes.rows.append(("set_meta", ("secret", stored)))
        return bytes.fromhex(stored)

    # -- life

    def recover(self) -> None:
        """Rebuild what is runnable from the file. Reads nothing of finished instances."""
        now = self.clock.now()
        self.world.start_rows(int(self._loader.meta("next_row") or 0))
        self.hubs.clear()
        for hub, name in self._reader.execute(SQL["hubs"]):
            if name is None:
                self.doomed_hubs.add(hub)
            else:
                self.hubs[name] = hub
        self._writer.execute("BEGIN IMMEDIATE")
        self._writer.execute(SQL["break_activities"], (now,))
        self._writer.execute(SQL["break_entities"], (now,))
        self._writer.execute("COMMIT")
        grace_us = int(self.leases.grace_s * wire.MICROS)
        for row in self._reader.execute(SQL["recover_activities"]).fetchall():
            activity = activity_of(row)
            self.world.open_activity(activity)
            self._offer_after(
                self._activity_work(activity), (row[11] + grace_us - now) / wire.MICROS if row[10] else 0.0
            )
        for hub, entity_id, leased, broken_at in self._reader.execute(SQL["recover_entities"]).fetchall():
            work = Work(Kind.ENTITY, hub, entity_id.split("@", 2)[1], "", (hub, entity_id))
            self._offer_after(work, (broken_at + grace_us - now) / wire.MICROS if leased else 0.0)
        for hub, instance_id, name, version in self._reader.execute(SQL["recover_instances"]).fetchall():
            self.dispatcher.offer(Work(Kind.ORCHESTRATION, hub, name, version or "", (hub, instance_id)))
        self.timers.reset()

    def _offer_after(self, work: Work, delay_s: float) -> None:
        if delay_s <= 0:
            self.dispatcher.offer(work)
        else:
            self.dispatcher.hold_back(work, delay_s, lambda: self._offer_again(work))

    def _offer_again(self, work: Work) -> None:
        """Offer work that may have been done meanwhile: then it is skipped when it should be sent."""
        subject = work.subject
        if isinstance(subject, Activity):
            if not subject.done:
                self.dispatcher.offer(work)
        else:
            self.dispatcher.offer(work)

    def _committed(self, changes: Changes) -> None:
        self.world.settle(changes)
        offer = self.dispatcher.offer
        for instance in changes.ready.values():
            if instance.runnable:
                offer(
                    Work(
                        Kind.ORCHESTRATION,
                        instance.hub,
                        instance.name,
                        instance.version or "",
                        (instance.hub, instance.id),
                    )
                )
        for activity in changes.activities:
            if not activity.done:
                offer(self._activity_work(activity))
        for entity in changes.ready_entities.values():
            if entity.runnable:
                offer(Work(Kind.ENTITY, entity.hub, entity.name, "", (entity.hub, entity.id)))
        for timer in changes.timers:
            self.timers.add(timer)
        for instance in changes.changed.values():
            self.waiters.wake(instance.row)
        for instance in changes.removed:
            self.waiters.wake(instance.row)
        for key in [key for key, batch in self._signals.items() if batch is changes]:
            del self._signals[key]
        self.timers.committed()

    @staticmethod
    def _activity_work(activity: Activity) -> Work:
        return Work(Kind.ACTIVITY, activity.hub, activity.name, activity.version or "", activity)

    def _failed(self, error: BaseException) -> None:
        """Start over from what is on disk: memory is ahead of it."""
        _log.error("runtime.reset", extra={"error": str(error)})
        self.world.clear()
        self.dispatcher.clear()
        self._turn_work.clear()
        self._signals.clear()
        self._loop.call_soon(self._recover_or_retry)

    def _recover_or_retry(self) -> None:
        try:
            self.recover()
        except sqlite3.Error as error:
            _log.error("runtime.recovery_failed", extra={"error": str(error)})  # no use for the trace
            self._loop.call_later(1.0, self._recover_or_retry)
            return
        self.waiters.wake_all()

    def close(self) -> None:
        """Stop timers and the commit thread and close the file."""
        self.timers.close()
        self.journal.close()
        self._reader.close()

    # -- changes

    def change(self, operation: Callable[[Changes, MemoryWorld, int], _T]) -> _T:
        """Run an engine operation on the open batch.

        A refusal (``SchedulerError``) comes before any change. Any other exception leaves memory in an
        unknown state: everything uncommitted is undone.
        """
        try:
            result = operation(self.journal.changes, self.world, self.clock.now())
        except SchedulerError:
            raise
        except Exception as error:
            _log.exception("engine.bug")
            self.journal.abort(error)
            raise
        self.journal.kick()
        return result

    def hub(self, name: str) -> int:
        """Number of a task hub, which is made if need be."""
        found = self.hubs.get(name)
        if found is None:
            found = self.hubs[name] = self.world.next_row()
            self.journal.changes.rows.append(("insert_hub", (found, name)))
            self.journal.kick()
        return found

    def signal(self, hub: int, request: pb.SignalEntityRequest) -> None:
        """Accept a client's signal, once per request id."""
        key = (hub, request.requestId)
        if request.requestId and (key in self._signals or self.world.signal_seen(*key)):
            return
        self.change(lambda changes, world, now: entities.signal(changes, world, hub, request, now))
        if request.requestId:
            self._signals[key] = self.journal.changes
            self.journal.changes.rows.append(("insert_signal_seen", (*key, self.clock.now())))

    def _fire(self, due: list[Timer]) -> None:
        def fire(changes: Changes, world: MemoryWorld, now: int) -> None:
            for timer in due:
                if timer.hub not in self.doomed_hubs:
                    tasks.fire(changes, world, timer, now)

        self.change(fire)

    # -- handing out

    def encode(self, stream: Stream, work: Work) -> bytes | None:
        """Turn assigned work into a work item under a new token; None if it is not wanted any more."""
        data = self._encoders[work.kind](work)
        if data is None:
            self.dispatcher.skipped(stream, work)
            return None
        work.deadline = self._loop.time() + work.lease_s
        self.dispatcher.sent(stream, work)
        self._turn_work[work.token] = (stream, work)
        return data

    def _encode_turn(self, work: Work) -> bytes | None:
        instance = self._instance_of(work)
        if instance is None or not instance.runnable:
            return None
        token = self._tokens.turn()
        data = self.change_quietly(
            lambda changes, now: turns.begin(changes, self.world, instance, token, now)
        )
        work.token = token
        work.lease_s = max(work.lease_s, self.leases.orchestration_s)
        return data

    def _encode_activity(self, work: Work) -> bytes | None:
        activity = work.subject
        assert isinstance(activity, Activity)
        if activity.done:
            return None
        request = self.world.activity_request(activity)
        if request is None:
            return None
        activity.attempt += 1
        work.token = self._tokens.activity(activity.row, activity.attempt)
        work.lease_s = self.leases.activity_s
        # Written with the next commit, not waited for: if it gets lost, the activity is handed out again
        # without the grace for a worker that is out of sight.
        self.journal.changes.rows.append(("lease_activity", (1, activity.attempt, activity.row)))
        self.journal.kick_later(_LEASE_MARK_S)
        return wire.activity_item(request, work.token.encode())

    def _encode_batch(self, work: Work) -> bytes | None:
        assert not isinstance(work.subject, Activity)
        entity = self.world.entity(*work.subject)
        if not entity.runnable:
            return None
        entity.attempt += 1
        token = self._tokens.entity(entity.row, entity.turn, entity.attempt)
        data = self.change_quietly(
            lambda changes, now: entities.begin_batch(changes, self.world, entity, token, now)
        )
        if data is None or entity.batch is None:
            return None
        work.token = entity.batch.token
        work.lease_s = self.leases.entity_s
        self.journal.changes.rows.append(("lease_entity", (1, entity.attempt, entity.row)))
        self.journal.kick_later(_LEASE_MARK_S)
        return data

    def change_quietly(self, operation: Callable[[Changes, int], _T]) -> _T:
        """An operation that mostly writes nothing: only if it does, a commit is asked for."""
        changes = self.journal.changes
        before = len(changes.rows)
        result = operation(changes, self.clock.now())
        if len(changes.rows) != before:
            self.journal.kick()
        return result

    # -- answers

    def _answered(self, token: str) -> Work | None:
        held = self._turn_work.pop(token, None)
        if held is None:
            return None
        stream, work = held
        self.dispatcher.answered(stream, token)
        return work

    def complete_turn(self, response: pb.OrchestratorResponse) -> bool:
        """Commit a turn. Answers whether the token counted."""
        work = self._answered(response.completionToken)
        instance = self._instance_of(work)
        if (
            work is None
            or instance is None
            or instance.turn is None
            or instance.turn.token != response.completionToken
        ):
            return self._stale(response.completionToken)
        self._settle(Kind.ORCHESTRATION, work.subject)
        self.change(lambda changes, world, now: turns.complete(changes, world, instance, response, now))
        return True

    def _settle(self, kind: Kind, subject: Subject) -> None:
        """Something was answered: what waits out a grace or a backoff about it need not."""
        self._backoff.pop((kind, subject), None)
        self.dispatcher.let_go(kind, subject)

    def _instance_of(self, work: Work | None) -> Instance | None:
        if work is None or work.kind is not Kind.ORCHESTRATION or isinstance(work.subject, Activity):
            return None
        return self.world.instance(*work.subject)

    def complete_activity(self, response: pb.ActivityResponse) -> bool:
        """Record an activity's result. Answers whether the token counted."""
        self._answered(response.completionToken)
        activity = self._open_activity(response.completionToken)
        if activity is None:
            return self._stale(response.completionToken)
        self._settle(Kind.ACTIVITY, activity)
        self.change(
            lambda changes, world, now: tasks.complete_activity(changes, world, activity, response, now)
        )
        return True

    def _open_activity(self, token: str) -> Activity | None:
        read = self._tokens.read_activity(token)
        if read is None:
            return None
        activity = self.world.activity_rows.get(read.row)
        # A note of a hand-out may have been lost with the previous process: later attempts count too.
        return None if activity is None or activity.done or read.attempt < activity.attempt else activity

    def complete_batch(self, result: pb.EntityBatchResult) -> bool:
        """Commit an entity batch. Answers whether the token counted."""
        self._answered(result.completionToken)
        found = self._open_batch(result.completionToken)
        if found is None:
            return self._stale(result.completionToken)
        entity, batch = found
        self._settle(Kind.ENTITY, (entity.hub, entity.id))
        self.change(
            lambda changes, world, now: entities.complete_batch(
                changes, world, entity, batch.operations, result, now
            )
        )
        return True

    def _open_batch(self, token: str) -> tuple[Entity, Batch] | None:
        read = self._tokens.read_entity(token)
        if read is None:
            return None
        entity = self.world.entity_by_row(read.row)
        if entity is None or entity.turn != read.turn:
            return None
        if entity.batch is not None:
            return (entity, entity.batch) if entity.batch.token == token else None
        if read.attempt < entity.attempt:
            return None
        operations = entities.find_batch(entity, read.operations)
        return None if operations is None else (entity, Batch(token, operations))

    def _stale(self, token: str) -> bool:
        self.stale_completions += 1
        _log.info("completion.stale", extra={"token": token})
        return False

    # -- losses

    def abandon(self, token: str) -> None:
        """A worker gives something back: it goes out again after a while, rather to another worker."""
        held = self._turn_work.get(token)
        work = self._answered(token)
        if work is None or held is None:
            self._stale(token)
            return
        key = (work.kind, work.subject)
        delay_s = self._backoff.get(key, _BACKOFF_S[0])
        self._backoff[key] = min(delay_s * 2, _BACKOFF_S[1])
        # A turn is given back for its version, which must not count against it.
        self._take_back(held[0], work, delay_s, counts=work.kind is not Kind.ORCHESTRATION)

    def detach(self, stream: Stream) -> None:
        """A stream has ended. Turns go out again at once, the rest after a grace."""
        for work in self.dispatcher.detach(stream):
            self._turn_work.pop(work.token, None)
            grace_s = 0.0 if work.kind is Kind.ORCHESTRATION else self.leases.grace_s
            if grace_s and stream.worker:
                self._loop.call_later(grace_s, self._lose_unless_back, stream, work)
            elif grace_s:
                self._loop.call_later(grace_s, self._lose, stream, work)
            else:
                self._take_back(stream, work, 0.0, counts=True)

    def _lose_unless_back(self, stream: Stream, work: Work) -> None:
        same = any(other.worker == stream.worker for other in self.dispatcher.streams.get(stream.hub, ()))
        if same:
            self._loop.call_later(self.leases.reconnect_s, self._lose, stream, work)
        else:
            self._lose(stream, work)

    def _lose(self, stream: Stream, work: Work) -> None:
        self._take_back(stream, work, 0.0, counts=True)

    def _take_back(self, stream: Stream, work: Work, delay_s: float, *, counts: bool) -> None:
        if not self._still_out(work):
            return
        self.dispatcher.redeliveries += 1
        again = Work(
            work.kind, work.hub, work.name, work.version, work.subject, lost_by=stream, lease_s=work.lease_s
        )

        def lose(changes: Changes, now: int) -> None:
            if self._losers[work.kind](work, changes, now, counts):
                self._offer_after(again, delay_s)

        self.change_quietly(lose)

    def _still_out(self, work: Work) -> bool:
        """Whether the loss of ``work`` matters: it has no answer and is not out under another token."""
        subject = work.subject
        if isinstance(subject, Activity):
            return self._open_activity(work.token) is subject
        if work.kind is Kind.ORCHESTRATION:
            instance = self.world.instance(*subject)
            return instance is not None and instance.turn is not None and instance.turn.token == work.token
        entity = self.world.entity(*subject)
        return entity.batch is not None and entity.batch.token == work.token

    def _lose_turn(self, work: Work, changes: Changes, now: int, counts: bool) -> bool:
        instance = self._instance_of(work)
        assert instance is not None
        turns.lost(changes, self.world, instance, now, counts=counts)
        return instance.runnable

    def _lose_activity(self, work: Work, changes: Changes, now: int, counts: bool) -> bool:
        assert isinstance(work.subject, Activity)
        return not counts or tasks.lost_activity(changes, self.world, work.subject, now)

    def _lose_batch(self, work: Work, changes: Changes, now: int, counts: bool) -> bool:
        assert not isinstance(work.subject, Activity)
        entity = self.world.entity(*work.subject)
        assert entity.batch is not None
        operations = entity.batch.operations
        entity.batch = None
        entity.losses += counts
        if entity.losses >= self.world.limits.losses:
            failure = events.failure(
                "PoisonWorkItem", f"the batch was handed out {entity.losses} times and lost each time"
            )
            entities.fail_batch(changes, self.world, entity, operations, failure, now)
            return entity.runnable
        changes.touch_entity(entity)
        entities.advance(changes, self.world, entity, now)
        return entity.runnable

    def expire(self) -> None:
        """Take back what workers have kept too long.

        A turn gets twice the time when it goes out again, so that an overloaded worker is not asked the same
        thing over and over.
        """
        for stream, work in self.dispatcher.expired(self._loop.time()):
            self._turn_work.pop(work.token, None)
            work.lease_s = min(work.lease_s * 2, 3600.0) if work.kind is Kind.ORCHESTRATION else 0.0
            self._take_back(stream, work, 0.0, counts=False)

    # -- task hubs

    def doom_hub(self, name: str) -> None:
        """Empty a task hub at once; what it had is deleted in small steps later."""
        hub = self.hubs.pop(name, None)
        if hub is None:
            return
        self.doomed_hubs.add(hub)
        self.world.forget_hub(hub)
        self.dispatcher.drop_hub(hub)
        self.waiters.wake_all()
        self.journal.changes.rows.append(("doom_hub", (hub,)))
        self.journal.kick()
