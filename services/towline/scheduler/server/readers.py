"""A small pool of threads with a read-only connection each, for everything that scans."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, TypeVar

from towline.scheduler.store.database import connect

_T = TypeVar("_T")

_ASKED_EVERY: Final = 10_000
"""Steps of SQLite's machine after which a query is asked whether it is to end: about a millisecond."""


class Readers:
    """Runs functions of a connection off the event loop."""

    def __init__(self, path: Path, count: int = 2) -> None:
        self._path = path
        self._local = threading.local()
        self._closing = False
        self._pool = ThreadPoolExecutor(count, thread_name_prefix="scheduler-read")

    def _run(self, function: Callable[[sqlite3.Connection], _T]) -> _T:
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._local.connection = connect(self._path, readonly=True)
            # Not `interrupt`, which a statement that is just about to begin does not hear of.
            connection.set_progress_handler(lambda: self._closing, _ASKED_EVERY)
        return function(connection)

    async def run(self, function: Callable[[sqlite3.Connection], _T]) -> _T:
        """Call ``function`` with a connection that sees what is committed."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._run, function)

    def close(self) -> None:
        """Cut off what runs: its caller has been told to come again."""
        self._closing = True
        self._pool.shutdown(wait=True, cancel_futures=True)
