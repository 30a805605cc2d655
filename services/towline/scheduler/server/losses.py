"""Work that comes back without an answer: given up, lost with its worker, kept too long."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final

from towline.scheduler.engine import entities, events, tasks, turns
from towline.scheduler.engine.changes import Changes
from towline.scheduler.engine.model import Activity
from towline.scheduler.server.dispatch import Kind, Stream, Subject, Work

if TYPE_CHECKING:
    from towline.scheduler.server.runtime import Runtime

_BACKOFF_S: Final = (0.2, 30.0)
"""Least and most time before work that was given back goes out again."""
_ARRIVED_S: Final = 20.0
"""What was sent so long before a stream ended has reached the worker: keepalive finds a dead one sooner."""


class Losses:
    """Takes work back and hands it out again, unless it was lost too often."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._call_later = asyncio.get_running_loop().call_later
        self._losers: dict[Kind, Callable[[Work, Changes, int, bool], bool]] = {
            Kind.ORCHESTRATION: self._lose_turn,
            Kind.ACTIVITY: self._lose_activity,
            Kind.ENTITY: self._lose_batch,
        }

    def settle(self, kind: Kind, subject: Subject) -> None:
        """Something was answered: what waits out a grace or a backoff about it need not."""
        self._runtime.dispatcher.let_go(kind, subject)

    def abandon(self, token: str) -> None:
        """A worker gives something back: it goes out again after a while, rather to another worker."""
        held = self._runtime.handouts.take(token)
        if held is None:
            self._runtime.answers.stale(token)
            return
        # A turn is given back for its version, which must not count against it.
        self._back_off(*held, counts=held[1].kind is not Kind.ORCHESTRATION)

    def put_off(self, stream: Stream, work: Work) -> None:
        """What a worker has answered can't be taken now: it goes out again after a while."""
        self._back_off(stream, work, counts=False)

    def _back_off(self, stream: Stream, work: Work, *, counts: bool) -> None:
        delay_s = work.backoff_s or _BACKOFF_S[0]
        work.backoff_s = min(delay_s * 2, _BACKOFF_S[1])
        self._take_back(stream, work, delay_s, counts=counts)

    def detach(self, stream: Stream) -> None:
        """A stream has ended. Turns go out again at once, the rest after a grace.

        Unless the worker is back by then: it keeps what it is sure to answer until the lease ends. The rest
        may never have reached it, or its report may have been lost: that is given some more time.
        """
        now = self._runtime.loop.time()
        for work in self._runtime.dispatcher.detach(stream):
            self._runtime.handouts.forget(work.token)
            grace_s = 0.0 if work.kind is Kind.ORCHESTRATION else self._runtime.leases.grace_s
            if grace_s and stream.worker:
                has_it = now - (work.deadline - work.lease_s) >= _ARRIVED_S
                sure = stream.repeats_reports and has_it
                self._call_later(grace_s, partial(self._lose_unless_back, stream, work, sure=sure))
            elif grace_s:
                self._call_later(grace_s, self._lose, stream, work)
            else:
                self._take_back(stream, work, 0.0, counts=True)

    def _lose_unless_back(self, stream: Stream, work: Work, *, sure: bool) -> None:
        streams = self._runtime.dispatcher.streams.get(stream.hub, ())
        back = next((other for other in streams if other.worker == stream.worker), None)
        if back is None:
            self._lose(stream, work)
        elif not sure:
            self._call_later(self._runtime.leases.reconnect_s, self._lose, stream, work)
        elif self._still_out(work):
            self._runtime.handouts.keep(back, work)

    def _lose(self, stream: Stream, work: Work) -> None:
        self._take_back(stream, work, 0.0, counts=True)

    def _take_back(self, stream: Stream, work: Work, delay_s: float, *, counts: bool) -> None:
        if not self._still_out(work):
            return
        self._runtime.dispatcher.redeliveries += 1
        again = Work(
            *(work.kind, work.hub, work.name, work.version, work.subject),
            lost_by=stream,
            lease_s=work.lease_s,
            backoff_s=work.backoff_s,
            fresh=work.fresh,
        )

        def lose(changes: Changes, now: int) -> None:
            if self._losers[work.kind](work, changes, now, counts):
                again.suspect = self._runtime.is_suspect(again)
                self._runtime.offer_after(again, delay_s)

        self._runtime.change_quietly(lose)

    def _still_out(self, work: Work) -> bool:
        """Whether the loss of ``work`` matters: it has no answer and is not out under another token."""
        subject = work.subject
        if isinstance(subject, Activity):
            return self._runtime.answers.open_activity(work.token) is subject
        if work.kind is Kind.ORCHESTRATION:
            instance = self._runtime.world.instance(*subject)
            return instance is not None and instance.turn is not None and instance.turn.token == work.token
        entity = self._runtime.world.entity(*subject)
        return entity.batch is not None and entity.batch.token == work.token

    def _lose_turn(self, work: Work, changes: Changes, now: int, counts: bool) -> bool:
        instance = self._runtime.instance_of(work)
        assert instance is not None
        turns.lost(changes, self._runtime.world, instance, now, counts=counts)
        return instance.runnable

    def _lose_activity(self, work: Work, changes: Changes, now: int, counts: bool) -> bool:
        assert isinstance(work.subject, Activity)
        return not counts or tasks.lost_activity(changes, self._runtime.world, work.subject, now)

    def _lose_batch(self, work: Work, changes: Changes, now: int, counts: bool) -> bool:
        assert not isinstance(work.subject, Activity)
        entity = self._runtime.world.entity(*work.subject)
        assert entity.batch is not None
        operations = entity.batch.operations
        entity.batch = None
        entity.losses += counts
        if entity.losses >= self._runtime.world.limits.losses:
            failure = events.failure(
                "PoisonWorkItem", f"the batch was handed out {entity.losses} times and lost each time"
            )
            entities.fail_batch(changes, self._runtime.world, entity, operations, failure, now)
            return entity.runnable
        changes.touch_entity(entity)
        entities.advance(changes, self._runtime.world, entity, now)
        return entity.runnable

    def expire(self) -> None:
        """Take back what workers have kept too long.

        A turn gets twice the time when it goes out again, so that an overloaded worker is not asked the same
        thing over and over.
        """
        for stream, work in self._runtime.dispatcher.expired(self._runtime.loop.time()):
            self._runtime.handouts.forget(work.token)
            work.lease_s = min(work.lease_s * 2, 3600.0) if work.kind is Kind.ORCHESTRATION else 0.0
            self._take_back(stream, work, 0.0, counts=False)
