"""Durable timers: those due soon in memory, the others in the file."""

from __future__ import annotations

import asyncio
import heapq
import logging
import sqlite3
from collections.abc import Callable

from towline.scheduler.engine.model import Timer
from towline.scheduler.store.rows import timer_of
from towline.scheduler.store.statements import SQL

_log = logging.getLogger(__name__)

_WINDOW_US = 120 * 1_000_000
"""How far ahead timers are kept in memory."""
_BEFORE_ALL = -(1 << 62)
"""A time before that of any timer; those of years before 1970 are less than 0."""
_FIRE_AT_ONCE = 200
"""Timers that fire before the loop gets a turn."""
_READ_AGAIN_S = 1.0
"""Until the file is looked into again that could not be read."""
_PUT_OFF_US = 5 * 1_000_000
"""Until a timer fires whose instance could not be read."""


class Timers:
    """Fires timers at or after their time, never before.

    The heap has every timer up to the horizon. Looking further happens only while no commit is under way,
    so that a timer is either in the file then or announced afterwards, never both.
    """

    def __init__(
        self, connection: sqlite3.Connection, now: Callable[[], int], fire: Callable[[list[Timer]], None]
    ) -> None:
        self._execute = connection.execute
        self._now = now
        self._fire = fire
        self._heap: list[tuple[int, int, Timer]] = []
        self._horizon = _BEFORE_ALL
        self._next_beyond: int | None = None
        self._handle: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self.wants_refill = False
        """The file is to be read, as soon as no commit is under way."""
        self.idle: Callable[[], bool] = lambda: True

    def add(self, timer: Timer) -> None:
        """A timer was committed."""
        if timer.fire_at <= self._horizon:
            heapq.heappush(self._heap, (timer.fire_at, timer.row, timer))
            if self._heap[0][2] is timer:
                self.arm()
        elif self._next_beyond is None or timer.fire_at < self._next_beyond:
            self._next_beyond = timer.fire_at
            self.arm()

    def put_off(self, timer: Timer) -> None:
        """Fire it again after a while."""
        heapq.heappush(self._heap, (self._now() + _PUT_OFF_US, timer.row, timer))

    def reset(self) -> None:
        """Read everything again."""
        self._heap.clear()
        self._horizon = _BEFORE_ALL
        self._next_beyond = -1
        self.arm()

    def arm(self) -> None:
        """Wait for the next one. To be called after the clock was moved, too."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        times = [self._heap[0][0]] if self._heap else []
        if self._next_beyond is not None:
            times.append(max(self._next_beyond - _WINDOW_US, -1))
        if times:
            delay_s = (min(times) - self._now()) / 1_000_000
            # The wall clock may be set: look at least once a minute.
            self._handle = self._loop.call_later(min(max(delay_s, 0.0), 60.0), self._run)

    def _run(self) -> None:
        self._handle = None
        now = self._now()
        if self._next_beyond is not None and self._next_beyond <= now + _WINDOW_US:
            self.wants_refill = not self.idle()
            if not self.wants_refill and not self._refill(now + _WINDOW_US):
                self._handle = self._loop.call_later(_READ_AGAIN_S, self._run)
        self._fire_due(now)
        if not self.wants_refill and self._handle is None:
            self.arm()

    def committed(self) -> None:
        """A commit is over: the moment to look further, if that is due."""
        if self.wants_refill:
            self._run()

    def _refill(self, horizon: int) -> bool:
        """Answers whether the file could be read."""
        try:
            found = self._execute(SQL["timers_due"], (self._horizon, horizon)).fetchall()
            self._next_beyond = self._execute(SQL["timer_after"], (horizon,)).fetchone()[0]
        except sqlite3.Error as error:
            _log.error("timers.not_read", extra={"error": str(error)})  # no use for the trace
            return False
        for row in found:
            timer = timer_of(row)
            heapq.heappush(self._heap, (timer.fire_at, timer.row, timer))
        self._horizon = horizon
        return True

    def _fire_due(self, now: int) -> None:
        due: list[Timer] = []
        while self._heap and self._heap[0][0] <= now and len(due) < _FIRE_AT_ONCE:
            due.append(heapq.heappop(self._heap)[2])
        if due:
            self._fire(due)

    @property
    def pending(self) -> int:
        """Timers in memory."""
        return len(self._heap)

    def close(self) -> None:
        """Fire no more."""
        if self._handle is not None:
            self._handle.cancel()
