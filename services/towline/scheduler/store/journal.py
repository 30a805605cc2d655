"""Group commit: everything that is ready when the last commit has ended goes into the next one.

Statements run where the state lives (on the event loop: each takes microseconds and touches no disk, the
cache never spills). A statement run on another thread would give up and win back the interpreter lock for
every row, which costs more than the row.

So does the commit with its fsync while the disk is quick: handing it to a thread and back takes longer than
the disk. When the disk is slow, commits go to a thread of their own, and the next one is under way before
the effects of the last are seen to: the disk does not wait for them.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from towline.scheduler.engine.changes import Changes
from towline.scheduler.engine.errors import NotDurableError
from towline.scheduler.store import failpoints
from towline.scheduler.store.statements import SQL

_log = logging.getLogger(__name__)

QUICK_S: Final = 0.002
"""Commits that take no longer, on average, are made on the loop, which does nothing else meanwhile."""
_NEWEST: Final = 0.1
"""Weight of the newest commit in that average."""

WhenDurable: TypeAlias = "Callable[[NotDurableError | None], None]"
"""Told when changes are on disk, or that they are not and have been undone. It must not raise."""


@dataclass(slots=True)
class CommitStats:
    """What commits cost so far."""

    count: int = 0
    rows: int = 0
    seconds: float = 0.0
    slowest_s: float = 0.0
    failures: int = 0


@dataclass(slots=True)
class _Batch:
    changes: Changes = field(default_factory=Changes)
    waiters: list[WhenDurable] = field(default_factory=list["WhenDurable"])


def _refuse(waiters: Iterable[WhenDurable], error: BaseException) -> None:
    for then in waiters:
        then(NotDurableError(f"the change could not be committed: {error}"))


class Journal:
    """Collects changes and commits them in order. Used from one event loop only.

    A batch is shown to ``ahead`` before it is written, while it still takes changes. When it is on disk,
    ``on_commit`` is told first, then everybody who waits for it, then ``effects``.
    ``quick_s``: see `QUICK_S`; 0 has the thread commit always.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        *,
        on_commit: Callable[[Changes], None],
        effects: Callable[[Changes], None],
        on_failure: Callable[[BaseException], None],
        ahead: Callable[[Changes], None] = lambda _: None,
        quick_s: float = QUICK_S,
    ) -> None:
        self.stats = CommitStats()
        self.wants_rest: Callable[[], bool] = lambda: False
        """Whether somebody needs a moment in which no commit is under way."""
        self.refusal: BaseException | None = None
        """Why nothing is committed: what is changed builds on what is not on disk."""
        self._connection = connection
        self._on_commit = on_commit
        self._effects = effects
        self._on_failure = on_failure
        self._ahead = ahead
        self._loop = asyncio.get_running_loop()
        self._open = _Batch()
        self._committing: _Batch | None = None
        self._scheduled = False
        self._doomed: BaseException | None = None
        self._quick_s = quick_s
        self._commit_s = 0.0
        """What a commit takes of late."""
        self._queue: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="scheduler-commit", daemon=True)
        self._thread.start()

    @property
    def changes(self) -> Changes:
        """The batch that takes changes now."""
        return self._open.changes

    @property
    def uncommitted(self) -> tuple[Changes, ...]:
        """The batch that is being committed, if one is, and the open one."""
        if self._committing is None:
            return (self._open.changes,)
        return self._committing.changes, self._open.changes

    @property
    def settled(self) -> bool:
        """Whether no commit is under way: what the file has has been announced."""
        return self._committing is None

    def kick(self) -> None:
        """See to it that the open batch is committed soon."""
        if not self._scheduled and self._committing is None:
            self._scheduled = True
            # After everything that is ready in this turn of the loop: that is the group.
            self._loop.call_soon(self._flush)

    def when_durable(self, then: WhenDurable) -> None:
        """Call ``then`` when all changes made so far are on disk, or have been undone."""
        self._open.waiters.append(then)
        self.kick()

    async def commit(self) -> None:
        """Wait until all changes made so far are on disk.

        Raises:
            NotDurableError: They are not and have been undone.
        """
        future: asyncio.Future[None] = self._loop.create_future()

        def then(error: NotDurableError | None) -> None:
            if future.done():
                return
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(error)

        self.when_durable(then)
        await future

    def _flush(self) -> None:
        self._scheduled = False
        if self._committing is not None:
            return
        batch = self._open
        if self.refusal is not None:
            self._fail(batch, self.refusal)
            return
        if not batch.changes:
            # No commit is under way: what these waited for is on disk.
            waiters, batch.waiters = batch.waiters, []
            for then in waiters:
                then(None)
            return
        started, error = self._begin()
        if error is None and self._is_quick:
            error = self._commit()
        elif error is None:
            self._leave_to_thread(batch, started)
            return
        self._done(batch, started, error)

    @property
    def _is_quick(self) -> bool:
        return self._commit_s < self._quick_s

    def _begin(self) -> tuple[float, BaseException | None]:
        """Write the rows of the open batch, which is the one that is being committed from now on.

        Returns:
            When it began, and why its rows could not be written.
        """
        self._ahead(self._open.changes)
        batch = self._committing = self._open
        self._open = _Batch()
        started = time.perf_counter()
        try:
            failpoints.hit("apply.before")
            self._apply(batch.changes)
            failpoints.hit("commit.before")
        except (sqlite3.Error, ValueError, OverflowError, failpoints.FailpointError) as error:
            return started, error
        return started, None

    def _leave_to_thread(self, batch: _Batch, started: float) -> None:
        def job() -> None:
            error = self._commit()
            self._loop.call_soon_threadsafe(self._done, batch, started, error)

        self._queue.put(job)

    def _apply(self, changes: Changes) -> None:
        execute = self._connection.execute
        execute("BEGIN IMMEDIATE")
        for name, values in changes.rows:
            execute(SQL[name], values)
        insert = SQL["insert_instance"]
        for instance in changes.created.values():
            execute(insert, instance.columns())
        update = SQL["update_instance"]
        for instance in changes.touched.values():
            columns = instance.columns()
            # row, hub, id, name and created never change
            execute(update, (columns[4], columns[5], columns[6], *columns[8:], columns[0]))
        for entity in changes.entities.values():
            columns = entity.columns()
            if entity.empty and entity.batch is None:
                if entity.stored:
                    execute(SQL["delete_entity"], (entity.row,))
                entity.stored = False
            elif entity.stored:
                execute(SQL["update_entity"], (*columns[3:11], columns[0]))
            else:
                execute(SQL["insert_entity"], columns)
                entity.stored = True
        changes_rows = len(changes.rows) + len(changes.created) + len(changes.touched) + len(changes.entities)
        self.stats.rows += changes_rows

    def _commit(self) -> BaseException | None:
        """Commit. Returns why it failed."""
        began = time.perf_counter()
        try:
            self._connection.execute("COMMIT")
            failpoints.hit("commit.after")
        except (sqlite3.Error, failpoints.FailpointError) as error:
            return error
        self._commit_s += (time.perf_counter() - began - self._commit_s) * _NEWEST
        return None

    def _done(self, batch: _Batch, started: float, error: BaseException | None) -> None:
        took = time.perf_counter() - started
        self.stats.count += 1
        self.stats.seconds += took
        self.stats.slowest_s = max(self.stats.slowest_s, took)
        if error is not None:
            self._fail(batch, error)
            return
        self._committing = following = None
        if self._open.changes and self._doomed is None and not self._is_quick and not self.wants_rest():
            following = self._open
            started, error = self._begin()
            if error is None:
                self._leave_to_thread(following, started)
        self._on_commit(batch.changes)
        # Callers first: a worker's thread does nothing else until its answer is taken.
        for then in batch.waiters:
            then(None)
        self._effects(batch.changes)
        if following is not None:
            if error is not None:
                self._done(following, started, error)
        elif self._doomed is not None:
            self._fail(self._open, self._doomed)
        elif self._open.changes or self._open.waiters:
            self.kick()

    def _fail(self, batch: _Batch, error: BaseException) -> None:
        self.stats.failures += 1
        _log.error("commit.failed", extra={"error": str(error), "rows": len(batch.changes.rows)})
        if self._connection.in_transaction:
            self._connection.rollback()
        # What came after the failed batch builds on it and goes with it.
        following, self._open = self._open, _Batch()
        self._committing = self._doomed = None
        self._on_failure(error)
        _refuse((*batch.waiters, *following.waiters), error)

    def discard(self, error: BaseException) -> None:
        """Undo what is not being committed yet. The caller sees to the state in memory."""
        batch, self._open = self._open, _Batch()
        _refuse(batch.waiters, error)

    def abort(self, error: BaseException) -> None:
        """Undo everything that is not committed: the state in memory can't be trusted any more."""
        if self._committing is None:
            self._fail(self._open, error)
        else:
            self._doomed = error  # the commit under way is sound; the batch after it is not

    def _work(self) -> None:
        while True:
            job = self._queue.get()
            if job is None:
                return
            job()

    def close(self) -> None:
        """Stop the thread. Changes not committed are lost; :meth:`commit` first."""
        self._queue.put(None)
        self._thread.join()
