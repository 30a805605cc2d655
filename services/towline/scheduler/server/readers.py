"""A small pool of threads with a read-only connection each, for everything that scans."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from towline.scheduler.store.database import connect

_T = TypeVar("_T")


class Readers:
    """Runs functions of a connection off the event loop."""

    def __init__(self, path: Path, count: int = 2) -> None:
        self._path = path
        self._local = threading.local()
        self._connections: list[sqlite3.Connection] = []
        self._pool = ThreadPoolExecutor(count, thread_name_prefix="scheduler-read")

    def _run(self, function: Callable[[sqlite3.Connection], _T]) -> _T:
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._local.connection = connect(self._path, readonly=True)
            self._connections.append(connection)
        return function(connection)

    async def run(self, function: Callable[[sqlite3.Connection], _T]) -> _T:
        """Call ``function`` with a connection that sees what is committed."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._run, function)

    def close(self) -> None:
        """Cut off what runs: its caller has been told to come again."""
        for connection in self._connections:
            connection.interrupt()
        self._pool.shutdown(wait=True, cancel_futures=True)
