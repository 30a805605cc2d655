"""How fast the server is there after a kill, and what it takes while nothing is asked of it."""

from __future__ import annotations

import statistics
from contextlib import ExitStack
from pathlib import Path

from benchmarks.scheduler.bench import folder_mib, idle_percent, in_turn
from benchmarks.scheduler.files import make_file
from tests.conformance.processes import ServerProcess

_IDLE_S = 10.0


def measure_start(folder: Path, mib: int, rounds: int) -> dict[str, float]:
    """Exec to ready after a kill, by turns on a file with next to nothing in it and on one of ``mib`` MiB.

    Both have runs that wait for a worker.
    """
    servers = {name: ServerProcess(folder / name) for name in ("small", "large")}
    make_file(servers["small"].data, payload_bytes=10_000, waiting=100)
    make_file(servers["large"].data, payload_bytes=10_000, waiting=100, mib=mib)
    with ExitStack() as exits:
        for server in servers.values():
            exits.enter_context(server)
        for number in range(rounds):
            for server in in_turn(tuple(servers.values()), number):
                server.restart()
        results: dict[str, float] = {}
        for server in servers.values():
            title = f"start after a kill, file of {folder_mib(server.data):.1f} MiB"
            results[f"{title}, s"] = statistics.median(server.starts_s[1:])
            results[f"{title}, longest, s"] = max(server.starts_s[1:])
            results[f"{title}, s of CPU"] = statistics.median(server.starts_cpu_s[1:])
        large = servers["large"]
        results[f"idle CPU with a file of {folder_mib(large.data):.0f} MiB, percent"] = idle_percent(
            large.pid, _IDLE_S
        )
    return results
