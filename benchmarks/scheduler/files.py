"""Files with many finished instances, made in seconds: copies of one run that a worker finished."""

from __future__ import annotations

import sqlite3
from contextlib import ExitStack, closing
from pathlib import Path

from benchmarks.scheduler.worker import HUB, worker_process
from tests.conformance.hubs import Hub
from tests.conformance.processes import ServerProcess

from towline.scheduler.store.database import FILE_NAME


def make_file(
    data: Path, *, finished: int = 0, mib: int = 0, payload_bytes: int = 1_000, waiting: int = 0
) -> None:
    """A data folder with ``finished`` instances, or as many as make ``mib`` MiB.

    Each has an input and an output of ``payload_bytes``. ``waiting`` more wait for a worker that serves them.
    """
    server = ServerProcess(data)
    with server, ExitStack() as exits:
        hub = Hub(server, HUB)
        exits.callback(hub.close)
        sdk = hub.client()
        with worker_process(server.address):
            instance = sdk.schedule_new_orchestration("nothing", input="x" * payload_bytes)
            sdk.wait_for_orchestration_completion(instance, timeout=60)
        for _ in range(waiting):
            sdk.schedule_new_orchestration("waits_for_a_worker")
    _multiply(data / FILE_NAME, finished, mib)


def _multiply(path: Path, finished: int, mib: int) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        execute = connection.execute
        execute("PRAGMA synchronous=OFF")
        row, size = execute(
            "SELECT row, (SELECT sum(length(chunk)) FROM history WHERE key >> 20 = row) "
            "+ length(start) + ifnull(length(output), 0) FROM instance WHERE completed IS NOT NULL"
        ).fetchone()
        first: int = int(execute("SELECT value FROM meta WHERE key = 'next_row'").fetchone()[0])
        copies = max(finished - 1, (mib << 20) // size)
        if copies <= 0:
            return
        columns = ", ".join(
            {"row": "? + k", "id": "id || '-' || k"}.get(name, name)
            for _, name, *_ in execute("PRAGMA table_info(instance)")
        )
        numbers = "WITH RECURSIVE n(k) AS (SELECT 1 UNION ALL SELECT k + 1 FROM n WHERE k < ?) "
        execute("BEGIN")
        execute(
            f"{numbers}INSERT INTO instance SELECT {columns} FROM n, instance WHERE row = ?",
            (copies, first, row),
        )
        execute(
            f"{numbers}INSERT INTO history SELECT ((? + k) << 20) | (key & 0xfffff), chunk "
            "FROM n, history WHERE key >> 20 = ?",
            (copies, first, row),
        )
        execute("UPDATE meta SET value = ? WHERE key = 'next_row'", (str(first + copies + 1),))
        execute("COMMIT")
        execute("PRAGMA wal_checkpoint(TRUNCATE)")
