"""CPU and memory of processes, from /proc (Linux)."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, Self

_TICK_MS: Final = 1000 / os.sysconf("SC_CLK_TCK")
_PAGE_MB: Final = os.sysconf("SC_PAGE_SIZE") / 2**20
_SAMPLE_S: Final = 0.2


def cpu_ms(pid: int) -> float:
    """CPU milliseconds of a process so far, user and system."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * _TICK_MS


def rss_mb(pid: int) -> float:
    """Resident memory of a process in MiB."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_MB


def machine_busy_ms() -> float:
    """CPU milliseconds that all processes of the machine have used so far."""
    user, nice, system, *_ = (
        int(value) for value in Path("/proc/stat").read_text().split("\n")[0].split()[1:]
    )
    return (user + nice + system) * _TICK_MS


class PeakMemory:
    """Samples the memory of processes from a thread while the block runs.

    Args:
        processes: Asks for their ids by name.
    """

    def __init__(self, processes: Callable[[], Mapping[str, int]]) -> None:
        self._processes = processes
        self.peak_mb: dict[str, float] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def _sample(self) -> None:
        while True:
            for name, pid in self._processes().items():
                self.peak_mb[name] = max(self.peak_mb.get(name, 0.0), rss_mb(pid))
            if self._stop.wait(_SAMPLE_S):
                return

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
