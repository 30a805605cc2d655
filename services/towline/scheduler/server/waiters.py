"""Calls that wait for an instance: futures on the loop, one dictionary, no threads."""

import asyncio


class Waiters:
    """Futures by instance row, woken whenever a commit has changed the instance's status."""

    def __init__(self) -> None:
        self._by_row: dict[int, set[asyncio.Future[None]]] = {}
        self.count = 0

    async def wait(self, row: int) -> None:
        """Return after the next wake-up for ``row``. Safe to cancel."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._by_row.setdefault(row, set()).add(future)
        self.count += 1
        try:
            await future
        finally:
            self.count -= 1
            waiting = self._by_row.get(row)
            if waiting is not None:
                waiting.discard(future)
                if not waiting:
                    del self._by_row[row]

    def wake(self, row: int) -> None:
        """Let everybody who waits for ``row`` look again."""
        for future in self._by_row.pop(row, ()):
            if not future.done():
                future.set_result(None)

    def wake_all(self) -> None:
        """Let everybody look again."""
        for row in list(self._by_row):
            self.wake(row)
