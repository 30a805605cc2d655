"""Handing out: assigned work becomes a work item under a new token."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from towline.scheduler.engine import entities, turns, wire
from towline.scheduler.engine.model import Activity
from towline.scheduler.server.dispatch import Kind, Stream, Work

if TYPE_CHECKING:
    from towline.scheduler.server.runtime import Runtime

_log = logging.getLogger(__name__)

_NOTE_AFTER_S = 0.05
"""Time after which it is noted in the file that work was handed out. Most is answered sooner."""
_READ_AGAIN_S: Final = 5.0
"""Until work is offered again that could not be read from the file."""


class Handouts:
    """Encodes work for workers and remembers who has it."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._out: dict[str, tuple[Stream, Work]] = {}
        self._unnoted: list[str] = []
        """Tokens of activities and batches that went out lately."""
        self._encoders: dict[Kind, Callable[[Work, Stream], bytes | None]] = {
            Kind.ORCHESTRATION: self._encode_turn,
            Kind.ACTIVITY: self._encode_activity,
            Kind.ENTITY: self._encode_batch,
        }

    def encode(self, stream: Stream, work: Work) -> bytes | None:
        """Turn assigned work into a work item under a new token; None if it is not wanted any more."""
        try:
            data = self._encoders[work.kind](work, stream)
        except sqlite3.Error as error:
            # What goes out beside it is not held up.
            subject = work.subject
            whose = subject.instance_id if isinstance(subject, Activity) else subject[1]
            _log.error("handout.not_read", extra={"id": whose, "error": str(error)})  # no use for the trace
            self._runtime.dispatcher.skipped(stream, work)
            self._runtime.offer_after(work, _READ_AGAIN_S)
            return None
        if data is None:
            self._runtime.dispatcher.skipped(stream, work)
            return None
        work.deadline = self._runtime.loop.time() + work.lease_s
        self._runtime.dispatcher.sent(stream, work)
        self._out[work.token] = (stream, work)
        return data

    def _encode_turn(self, work: Work, stream: Stream) -> bytes | None:
        runtime = self._runtime
        instance = runtime.instance_of(work)
        if instance is None or not instance.runnable:
            return None
        if (instance.name, instance.version or "") != (work.name, work.version):
            return None  # the id was used again, for what this worker may not take: that is queued by itself
        # All that this may need, before anything is changed: a turn too large for a work item fails its
        # instance, of which the parent is told.
        runtime.world.load_history(instance)
        if instance.parent is not None:
            runtime.world.instance(instance.hub, instance.parent.instance_id)
        token = runtime.tokens.turn()
        reader = self._reader(work, stream)
        data = runtime.change_quietly(
            lambda changes, now: turns.begin(changes, runtime.world, instance, token, now, reader=reader)
        )
        work.token = token
        work.lease_s = max(work.lease_s, runtime.leases.orchestration_s)
        return data

    def _reader(self, work: Work, stream: Stream) -> turns.Reader:
        if not stream.fetches_history:
            return turns.Reader.STOCK
        keeps = stream.keeps_orchestrations and self._runtime.dispatcher.had_last_turn(stream, work)
        return turns.Reader.KEEPS if keeps else turns.Reader.FETCHES

    def _encode_activity(self, work: Work, _: Stream) -> bytes | None:
        runtime = self._runtime
        activity = work.subject
        assert isinstance(activity, Activity)
        if activity.done:
            return None
        request = runtime.world.activity_request(activity)
        if request is None:
            return None
        activity.attempt += 1
        work.token = runtime.tokens.activity(activity.row, activity.attempt)
        work.lease_s = runtime.leases.activity_s
        self._note_later(work.token)
        return wire.activity_item(request, work.token.encode())

    def _encode_batch(self, work: Work, _: Stream) -> bytes | None:
        runtime = self._runtime
        assert not isinstance(work.subject, Activity)
        entity = runtime.world.entity(*work.subject)
        if not entity.runnable:
            return None
        attempt = entity.attempt + 1
        token = runtime.tokens.entity(entity.row, entity.turn, attempt)
        data = runtime.change_quietly(
            lambda changes, now: entities.begin_batch(
                changes, runtime.world, entity, token, now, ahead=work.ahead
            )
        )
        if data is None or entity.batch is None:
            return None
        entity.attempt = attempt
        work.token = entity.batch.token
        work.lease_s = runtime.leases.entity_s
        self._note_later(work.token)
        return data

    def _note_later(self, token: str) -> None:
        # Not waited for: without the note, work goes out again after a restart without the grace for a worker
        # that is out of sight.
        if not self._unnoted:
            self._runtime.loop.call_later(_NOTE_AFTER_S, self._note)
        self._unnoted.append(token)

    def _note(self) -> None:
        tokens, self._unnoted = self._unnoted, []
        journal = self._runtime.journal
        for token in tokens:
            held = self._out.get(token)
            if held is None:
                continue
            subject = held[1].subject
            if isinstance(subject, Activity):
                journal.changes.rows.append(("lease_activity", (1, subject.attempt, subject.row)))
            else:
                entity = self._runtime.world.entity(*subject)
                if entity.batch is not None:
                    journal.changes.rows.append(("lease_entity", (1, entity.attempt, entity.row)))
        if journal.changes.rows:
            journal.kick()

    def take(self, token: str) -> tuple[Stream, Work] | None:
        """A worker is done with what it has under ``token``: it has room again."""
        held = self._out.pop(token, None)
        if held is not None:
            stream, work = held
            self._runtime.dispatcher.answered(stream, token)
            if work.kind is Kind.ORCHESTRATION:
                self._runtime.joins.took(self._runtime.loop.time() - (work.deadline - work.lease_s))
        return held

    def keep(self, stream: Stream, work: Work) -> None:
        """The worker that `stream` leads to has `work` from before, under its token and lease."""
        stream.held[work.token] = work
        stream.outstanding[work.kind] += 1
        self._out[work.token] = (stream, work)

    def forget(self, token: str) -> None:
        """A worker has lost what it had under ``token``."""
        self._out.pop(token, None)

    def clear(self) -> None:
        """Forget everything."""
        self._out.clear()
        self._unnoted.clear()
