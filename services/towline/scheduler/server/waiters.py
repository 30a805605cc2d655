"""Calls that wait for an instance: callbacks by instance, no threads, no tasks."""

from __future__ import annotations

from collections.abc import Callable


class Waiters:
    """Callbacks by instance row, called once, whenever a commit has changed the instance's status."""

    def __init__(self) -> None:
        self._by_row: dict[int, dict[Callable[[], None], None]] = {}
        self.count = 0

    def add(self, row: int, look: Callable[[], None]) -> None:
        """Call ``look`` at the next wake-up for ``row``. It must not raise."""
        self._by_row.setdefault(row, {})[look] = None
        self.count += 1

    def discard(self, row: int, look: Callable[[], None]) -> None:
        """Wait no longer."""
        waiting = self._by_row.get(row)
        if waiting is not None and look in waiting:
            del waiting[look]
            self.count -= 1
            if not waiting:
                del self._by_row[row]

    def wake(self, row: int) -> None:
        """Let everybody who waits for ``row`` look again."""
        waiting = self._by_row.pop(row, None)
        if waiting is None:
            return
        self.count -= len(waiting)
        for look in waiting:
            look()

    def wake_all(self) -> None:
        """Let everybody look again."""
        for row in list(self._by_row):
            self.wake(row)
