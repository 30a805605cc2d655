"""Reader threads: what runs on them does not hold up the end of the server."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from pathlib import Path

import pytest

from towline.scheduler.server.readers import Readers
from towline.scheduler.store.database import connect, migrate

FOR_EVER = (
    "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < 200000000) SELECT max(x) FROM n"
)


async def test_a_query_under_way_is_cut_off_when_the_server_ends(tmp_path: Path) -> None:
    """A server with millions of finished runs took as long to stop as somebody's query took."""
    path = tmp_path / "scheduler.db"
    writer = connect(path)
    migrate(writer, path)
    readers = Readers(path)
    running = threading.Event()

    def query(connection: sqlite3.Connection) -> object:
        running.set()
        return connection.execute(FOR_EVER).fetchone()

    waiting = asyncio.create_task(readers.run(query))
    await asyncio.to_thread(running.wait, 10)

    began = time.monotonic()
    readers.close()

    assert time.monotonic() - began < 2
    with pytest.raises(sqlite3.OperationalError, match="interrupted"):
        await waiting
    writer.close()
