"""Puts engine, store and workers together: every change goes through here.

All of it runs on one event loop. An operation changes the state in memory and the open batch in one go,
without awaiting; what follows from it (work handed out, waiters woken, the answer to the caller) waits for
the commit. But for one thing: what one turn has called of one entity goes out while it is being committed
(decision 0015).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from durabletask.internal import orchestrator_service_pb2 as pb

from towline.scheduler.engine import entities, tasks, wire
from towline.scheduler.engine.changes import Changes
from towline.scheduler.engine.errors import SchedulerError
from towline.scheduler.engine.model import Activity, Entity, Instance, Timer, TimerKind
from towline.scheduler.engine.ports import Limits
from towline.scheduler.server.answers import Answers
from towline.scheduler.server.clock import Clock
from towline.scheduler.server.dispatch import Dispatcher, Kind, Work
from towline.scheduler.server.handouts import Handouts
from towline.scheduler.server.joins import Joins
from towline.scheduler.server.losses import Losses
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
_FIRST_PAUSE_S: Final = 0.1
_LONGEST_PAUSE_S: Final = 5.0
_FAILURES_COUNTED: Final = 10
_RECOVER_AGAIN_S: Final = 1.0
"""Until the file is read again that could not be read after a failed commit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Leases:
    """How long a worker may keep what it was given, in seconds."""

    orchestration_s: float = 60.0
    activity_s: float = 14_400.0
    entity_s: float = 14_400.0
    grace_s: float = 5.0
    """Time after a stream breaks in which its worker may still answer for activities and entity batches."""
    reconnect_s: float = 60.0
    """The same once that worker has opened a new stream, for what it may not have or not report."""


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
        self.test_clock = test_clock
        self._writer = writer
        self._reader = connect(path, readonly=True)
        self._loader = Loader(self._reader)
        self.loop = asyncio.get_running_loop()
        offset = int(self._loader.meta("clock_offset_us") or 0) if test_clock else 0
        self.clock = Clock(offset)
        self.world = MemoryWorld(self._loader, limits, cache)
        self.journal = Journal(
            writer,
            on_commit=self._committed,
            effects=self._announce,
            on_failure=self._failed,
            ahead=self._hand_out_ahead,
        )
        self.world.changes = lambda: self.journal.changes
        self.world.batches = lambda: self.journal.uncommitted
        self.dispatcher = Dispatcher()
        self.waiters = Waiters()
        self.timers = Timers(self._reader, self.clock.now, self._fire)
        self.timers.idle = lambda: self.journal.settled
        self.journal.wants_rest = lambda: self.timers.wants_refill
        self.hubs: dict[str, int] = {}
        self.doomed_hubs: set[int] = set()
        self.tokens = Tokens(self._secret())
        self.handouts = Handouts(self)
        self.joins = Joins(self.loop.call_later)
        self.answers = Answers(self)
        self.losses = Losses(self)
        self._signals: dict[tuple[int, str], Changes] = {}
        """Signals that are accepted and not yet committed, with their batch."""
        self._failures = 0
        """Commits that failed since the last one that did not."""
        self._resuming: asyncio.TimerHandle | None = None
        self._recovering: asyncio.Handle | None = None
        """The reading of the file that is to come after a failed commit."""

    def _secret(self) -> bytes:
        stored = self._loader.meta("secret")
        if stored is None:
            stored = secrets.token_hex(16)
            # By itself: gone with a batch that fails, it would be another one after the next start.
            self._writer.execute(SQL["set_meta"], ("secret", stored))
        return bytes.fromhex(stored)

    # -- life

    def recover(self) -> None:
        """Rebuild what is runnable from the file. Reads nothing of finished instances."""
        now = self.clock.now()
        self.world.start_rows(int(self._loader.meta("next_row") or 0))
        self.hubs.clear()
        self.doomed_hubs.clear()
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
            self.offer_after(
                self._activity_work(activity), (row[11] + grace_us - now) / wire.MICROS if row[10] else 0.0
            )
        for hub, entity_id, leased, broken_at in self._reader.execute(SQL["recover_entities"]).fetchall():
            work = Work(Kind.ENTITY, hub, entity_id.split("@", 2)[1], "", (hub, entity_id))
            self.offer_after(work, (broken_at + grace_us - now) / wire.MICROS if leased else 0.0)
        for hub, instance_id, name, version, fresh in self._reader.execute(
            SQL["recover_instances"]
        ).fetchall():
            work = Work(Kind.ORCHESTRATION, hub, name, version or "", (hub, instance_id), fresh=bool(fresh))
            self.dispatcher.offer(work)
        self.timers.reset()

    def offer_after(self, work: Work, delay_s: float) -> None:
        """Offer work, at the earliest after a while."""
        if delay_s <= 0:
            self.dispatcher.offer(work)
        else:
            self.dispatcher.hold_back(work, delay_s, lambda: self._offer_again(work))

    def _offer_again(self, work: Work) -> None:
        """Offer work that may have been done meanwhile: then it is skipped when it should be sent."""
        subject = work.subject
        if isinstance(subject, Activity):
            if subject.done:
                return
        elif work.kind is Kind.ORCHESTRATION:
            with contextlib.suppress(sqlite3.Error):  # it is looked for again when it is to be sent
                instance = self.world.instance(*subject)
                if instance is None:
                    return
                # Its id may have been used again meanwhile, and what was offered of that not been queued.
                work.name, work.version = instance.name, instance.version or ""
        self.dispatcher.offer(work)

    def _committed(self, changes: Changes) -> None:
        """Memory and file agree about these changes."""
        if self._failures:
            self._resume()
            self._failures = 0
        self.world.settle(changes)

    def _announce(self, changes: Changes) -> None:
        """See to what follows from changes that are on disk: hand out work, wake who waits, set timers."""
        offer = self.dispatcher.offer
        for instance in changes.ready.values():
            if instance.runnable:
                turn = Work(
                    Kind.ORCHESTRATION,
                    instance.hub,
                    instance.name,
                    instance.version or "",
                    (instance.hub, instance.id),
                    fresh=instance.turn_at == 0 and instance.parent is None,
                    suspect=instance.losses >= self.world.limits.suspicious_losses,
                )
                more_to_come = self.world.has_activities(instance)
                self.joins.offer(instance, partial(offer, turn), more_to_come=more_to_come)
        for activity in changes.activities:
            if not activity.done:
                offer(self._activity_work(activity))
        for entity in changes.ready_entities.values():
            if entity.runnable:
                offer(self._batch_work(entity))
        for receiver, error in changes.dropped:
            _log.error("message.dropped", extra={"id": receiver, "error": error})
        for timer in changes.timers:
            self.timers.add(timer)
        for instance in changes.changed.values():
            self.waiters.wake(instance.row)
        for instance in changes.removed:
            self.waiters.wake(instance.row)
        for key in [key for key, batch in self._signals.items() if batch is changes]:
            del self._signals[key]
        self.timers.committed()

    def _hand_out_ahead(self, changes: Changes) -> None:
        """Have what one turn has called of one entity run while the turn is being committed."""
        if not changes.is_one_turn or not self.world.has_rows(changes):
            return
        for entity in changes.ready_entities.values():
            if entity.runnable:
                self.dispatcher.offer(self._batch_work(entity, ahead=True))
                self.dispatcher.write_now(entity.hub)

    def _batch_work(self, entity: Entity, *, ahead: bool = False) -> Work:
        suspect = entity.losses >= self.world.limits.suspicious_losses
        subject = (entity.hub, entity.id)
        return Work(Kind.ENTITY, entity.hub, entity.name, "", subject, ahead=ahead, suspect=suspect)

    @staticmethod
    def _activity_work(activity: Activity) -> Work:
        return Work(Kind.ACTIVITY, activity.hub, activity.name, activity.version or "", activity)

    def _failed(self, error: BaseException) -> None:
        """Start over from what is on disk: memory is ahead of it."""
        _log.error("runtime.reset", extra={"error": str(error)})
        if self._failures:
            # It is not the one commit. While the disk is full, every answer to what is handed out is lost.
            self.dispatcher.pause()
            if self._resuming is not None:
                self._resuming.cancel()
            delay_s = min(_FIRST_PAUSE_S * 2 ** (self._failures - 1), _LONGEST_PAUSE_S)
            self._resuming = self.loop.call_later(delay_s, self._resume)
        self._failures = min(self._failures + 1, _FAILURES_COUNTED)
        self._forget()
        # Until the file is read, callers may still be told numbers of rows and hubs that never came to be.
        self.journal.refusal = error
        if self._recovering is not None:
            self._recovering.cancel()
        self._recovering = self.loop.call_soon(self._recover_or_retry, error)

    def _forget(self) -> None:
        self.world.clear()
        self.dispatcher.clear()
        self.handouts.clear()
        self.joins.clear()
        self._signals.clear()

    def _resume(self) -> None:
        if self._resuming is not None:
            self._resuming.cancel()
            self._resuming = None
        self.dispatcher.resume()

    def _recover_or_retry(self, failure: BaseException) -> None:
        self._recovering = None
        self.journal.discard(failure)
        self._forget()
        try:
            self.recover()
        except sqlite3.Error as error:
            _log.error("runtime.recovery_failed", extra={"error": str(error)})  # no use for the trace
            if self._writer.in_transaction:
                self._writer.rollback()
            self._recovering = self.loop.call_later(_RECOVER_AGAIN_S, self._recover_or_retry, failure)
            return
        self.journal.refusal = None
        for hub in self.dispatcher.streams.keys() - self.hubs.values():
            self.dispatcher.drop_hub(hub)  # its number never came to be: the workers connect to another one
        self.answers.fail_refused()
        self.waiters.wake_all()

    def close(self) -> None:
        """Stop timers and the commit thread and close the file."""
        self.timers.close()
        if self._resuming is not None:
            self._resuming.cancel()
        if self._recovering is not None:
            self._recovering.cancel()
        self.journal.close()
        self._reader.close()

    # -- changes

    def change(self, operation: Callable[[Changes, MemoryWorld, int], _T], *, refusable: bool = True) -> _T:
        """Run an engine operation on the open batch.

        A refusal (``SchedulerError``) comes before any change, if the operation is one that can be refused.
        Any other exception leaves memory in an unknown state: everything uncommitted is undone.
        """
        try:
            result = operation(self.journal.changes, self.world, self.clock.now())
        except Exception as error:
            if refusable and isinstance(error, SchedulerError):
                raise
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
        self.change(
            lambda changes, world, now: entities.signal_from_client(changes, world, hub, request, now)
        )
        if request.requestId:
            self._signals[key] = self.journal.changes
            self.journal.changes.rows.append(("insert_signal_seen", (*key, self.clock.now())))

    def _fire(self, due: list[Timer]) -> None:
        hubs = set(self.hubs.values())  # what fires in a deleted one would never be deleted any more
        ready: list[Timer] = []
        for timer in due:
            try:
                if timer.kind == TimerKind.SIGNAL:
                    self.world.entity(timer.hub, timer.target_id)
                else:
                    self.world.instance(timer.hub, timer.target_id)
            except sqlite3.Error as error:
                # Asked before anything is changed: the others fire, and nothing has to be undone.
                _log.error("timer.not_fired", extra={"id": timer.target_id, "error": str(error)})
                self.timers.put_off(timer)
            else:
                ready.append(timer)

        def fire(changes: Changes, world: MemoryWorld, now: int) -> None:
            for timer in ready:
                if timer.hub in hubs:
                    tasks.fire(changes, world, timer, now)

        self.change(fire)

    def change_quietly(self, operation: Callable[[Changes, int], _T]) -> _T:
        """An operation that mostly writes nothing: only if it does, a commit is asked for."""
        changes = self.journal.changes
        before = len(changes.rows)
        result = operation(changes, self.clock.now())
        if len(changes.rows) != before:
            self.journal.kick()
        return result

    def is_suspect(self, work: Work) -> bool:
        """Whether work was lost so often that it may be what ends its workers."""
        if isinstance(work.subject, Activity):
            losses = work.subject.losses
        elif work.kind is Kind.ENTITY:
            losses = self.world.entity(*work.subject).losses
        else:
            instance = self.world.instance(*work.subject)
            losses = 0 if instance is None else instance.losses
        return losses >= self.world.limits.suspicious_losses

    def instance_of(self, work: Work) -> Instance | None:
        """The instance that a turn is for, if it still exists."""
        if work.kind is not Kind.ORCHESTRATION or isinstance(work.subject, Activity):
            return None
        return self.world.instance(*work.subject)

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
