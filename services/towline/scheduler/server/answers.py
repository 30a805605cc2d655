"""Answers of workers: judged by their token, committed once.

An answer that breaks the engine half-way must neither be committed in part nor come again for ever: all that
is uncommitted is undone, then what was answered is failed in an operation of its own.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from durabletask.internal import orchestrator_service_pb2 as pb

from towline.scheduler.engine import entities, events, lifecycle, tasks, turns
from towline.scheduler.engine.changes import Changes
from towline.scheduler.engine.errors import NotDurableError
from towline.scheduler.engine.model import Activity, Batch, Entity
from towline.scheduler.server.dispatch import Kind, Stream, Work
from towline.scheduler.server.world import MemoryWorld

if TYPE_CHECKING:
    from towline.scheduler.server.runtime import Runtime

_log = logging.getLogger(__name__)


class UnusableAnswerError(Exception):
    """An answer broke the engine. Everything uncommitted is being undone; see :meth:`Answers.refused`."""


class Answers:
    """Takes what workers send back."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self.stale_count = 0
        self._refused: list[Callable[[Changes, MemoryWorld, int], None]] = []
        """What fails the work behind unusable answers, once their effects are undone."""

    def complete_turn(self, response: pb.OrchestratorResponse) -> bool:
        """Commit a turn. Answers whether the token counted.

        Raises:
            UnusableAnswerError: The instance will be failed; wait for :meth:`refused`.
            NotDurableError: Whom it would be told to can't be read; the work goes out again.
        """
        token = response.completionToken
        held = self._runtime.handouts.take(token)
        instance = None if held is None else self._runtime.instance_of(held[1])
        if held is None or instance is None or instance.turn is None or instance.turn.token != token:
            return self.stale(token)
        if instance.parent is not None and any(
            action.HasField("completeOrchestration") for action in response.actions
        ):
            self._check_readable(held, instance.hub, (instance.parent.instance_id,))
        self._runtime.losses.settle(Kind.ORCHESTRATION, held[1].subject)
        try:
            self._runtime.change(
                lambda changes, world, now: turns.complete(changes, world, instance, response, now),
                refusable=False,
            )
        except Exception as error:
            key = (instance.hub, instance.id)
            self._refused.append(lambda changes, world, now: _fail_turn(changes, world, key, now))
            raise UnusableAnswerError from error
        return True

    def complete_activity(self, response: pb.ActivityResponse) -> bool:
        """Record an activity's result. Answers whether the token counted.

        Raises:
            UnusableAnswerError: The activity will be failed; wait for :meth:`refused`.
            NotDurableError: Whom it would be told to can't be read; the work goes out again.
        """
        token = response.completionToken
        held = self._runtime.handouts.take(token)
        activity = self.open_activity(token)
        if activity is None:
            return self.stale(token)
        self._check_readable(held, activity.hub, (activity.instance_id,))
        self._runtime.losses.settle(Kind.ACTIVITY, activity)
        try:
            self._runtime.change(
                lambda changes, world, now: tasks.complete_activity(changes, world, activity, response, now),
                refusable=False,
            )
        except Exception as error:
            row = activity.row
            self._refused.append(lambda changes, world, now: _fail_activity(changes, world, row, now))
            raise UnusableAnswerError from error
        return True

    def open_activity(self, token: str) -> Activity | None:
        """The activity that a token stands for, while the token counts."""
        read = self._runtime.tokens.read_activity(token)
        if read is None:
            return None
        activity = self._runtime.world.activity_rows.get(read.row)
        # A note of a hand-out may have been lost with the previous process: later attempts count too.
        return None if activity is None or activity.done or read.attempt < activity.attempt else activity

    def complete_batch(self, result: pb.EntityBatchResult) -> bool:
        """Commit an entity batch. Answers whether the token counted.

        Raises:
            UnusableAnswerError: Its operations will be failed; wait for :meth:`refused`.
            NotDurableError: Whom it would be told to can't be read; the work goes out again.
        """
        token = result.completionToken
        held = self._runtime.handouts.take(token)
        found = self._open_batch(token)
        if found is None:
            return self.stale(token)
        entity, batch = found
        self._check_readable(
            held, entity.hub, {op.caller for op in batch.operations if op.caller is not None}
        )
        self._runtime.losses.settle(Kind.ENTITY, (entity.hub, entity.id))
        try:
            self._runtime.change(
                lambda changes, world, now: entities.complete_batch(
                    changes, world, entity, batch.operations, result, now
                ),
                refusable=False,
            )
        except Exception as error:
            self._refused.append(lambda changes, world, now: self._fail_batch(changes, world, token, now))
            raise UnusableAnswerError from error
        return True

    def _open_batch(self, token: str) -> tuple[Entity, Batch] | None:
        read = self._runtime.tokens.read_entity(token)
        if read is None:
            return None
        entity = self._runtime.world.entity_by_row(read.row)
        if entity is None or entity.turn != read.turn:
            return None
        if entity.batch is not None:
            return (entity, entity.batch) if entity.batch.token == token else None
        if read.attempt < entity.attempt:
            return None
        operations = entities.find_batch(entity, read.operations)
        return None if operations is None else (entity, Batch(token, operations))

    def _check_readable(
        self, held: tuple[Stream, Work] | None, hub: int, instance_ids: Iterable[str]
    ) -> None:
        """Refuse an answer that would be told to an instance which can't be read: before anything is changed.

        Half-way it would have all undone that is not on disk, each time that the work is done again.

        Raises:
            NotDurableError: One of them can't be read. The work goes out again after a while.
        """
        try:
            for instance_id in instance_ids:
                self._runtime.world.instance(hub, instance_id)
        except sqlite3.Error as error:
            _log.error("answer.not_taken", extra={"ids": list(instance_ids), "error": str(error)})
            if held is not None:
                self._runtime.losses.put_off(*held)
            raise NotDurableError(f"whom the answer is for cannot be read: {error}") from error

    def _fail_batch(self, changes: Changes, world: MemoryWorld, token: str, now: int) -> None:
        found = self._open_batch(token)
        if found is not None:
            entity, batch = found
            entities.fail_batch(changes, world, entity, batch.operations, _failure("Entity"), now)

    async def refused(self) -> None:
        """Return when what an unusable answer was for has been failed, and that is committed.

        Raises:
            NotDurableError: It could not be committed.
        """
        with contextlib.suppress(NotDurableError):
            await self._runtime.journal.commit()  # the undoing: what was uncommitted is refused
        await self._runtime.journal.commit()

    def fail_refused(self) -> None:
        """Fail what unusable answers were for. To be called when their effects are undone."""
        while self._refused:
            self._runtime.change(self._refused.pop())

    def stale(self, token: str) -> bool:
        """Count a token that counts no more. Answers False."""
        self.stale_count += 1
        _log.info("completion.stale", extra={"token": token})
        return False


def _failure(what: str) -> pb.TaskFailureDetails:
    return events.failure(f"Invalid{what}Response", "the worker's answer could not be applied: see the log")


def _fail_turn(changes: Changes, world: MemoryWorld, key: tuple[int, str], now: int) -> None:
    instance = world.instance(*key)
    if instance is not None and not instance.terminal:
        lifecycle.fail(changes, world, instance, _failure("Orchestrator"), now)


def _fail_activity(changes: Changes, world: MemoryWorld, row: int, now: int) -> None:
    activity = world.activity_rows.get(row)
    if activity is not None:
        tasks.fail_activity(changes, world, activity, _failure("Activity"), now)
