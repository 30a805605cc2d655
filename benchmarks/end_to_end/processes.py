"""CPU and memory of processes with their children, from /proc (Linux)."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Collection, Generator, Mapping
from pathlib import Path
from typing import Final, Self

_TICK_MS: Final = 1000 / os.sysconf("SC_CLK_TCK")
_PAGE_MB: Final = os.sysconf("SC_PAGE_SIZE") / 2**20
_MODEL: Final = ("cpu family", "model", "stepping")
_SAMPLE_S: Final = 0.5
_SAMPLING_CORES: Final = 0.02
"""What sampling may take: a look at one process takes next to nothing, one at PostgreSQL's 70 to 130 ms."""


def processor() -> str:
    """Model of the machine's processor: hosts of one kind of machine differ threefold in speed."""
    told: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, colon, value = line.partition(":")
        if colon:
            told.setdefault(name.strip(), value.strip())
    known = (told.get("model name"), *(f"{name} {told[name]}" for name in _MODEL if name in told))
    return ", ".join(part for part in known if part) or "unknown"


def family(pid: int) -> Generator[int]:
    """The process and all that descend from it now."""
    yield pid
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = task.read_text().split()
        except OSError:  # the thread has ended meanwhile
            continue
        for child in children:
            yield from family(int(child))


def cpu_ms(pid: int) -> float:
    """CPU milliseconds so far, user and system, of a process and its children, those that have ended too."""
    ticks = 0
    for member in family(pid):
        try:
            stat = Path(f"/proc/{member}/stat").read_text()
        except OSError:  # ended meanwhile: it counts with its parent's ended children
            continue
        ticks += _ticks(stat)
    return ticks * _TICK_MS


def _ticks(stat: str) -> int:
    """Own time and that of children that have been waited for, of a line of /proc/PID/stat (proc(5))."""
    fields = stat.rpartition(")")[2].split()
    return sum(int(fields[index]) for index in range(11, 15))


def memory_mb(pid: int) -> float:
    """Resident memory in MiB of a process and its children; what they share is counted once."""
    members = list(family(pid))
    if len(members) == 1:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_MB
    total_kb = 0
    for member in members:
        try:
            lines = Path(f"/proc/{member}/smaps_rollup").read_text().splitlines()
        except OSError:  # ended meanwhile
            continue
        total_kb += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total_kb / 1024


def machine_busy_ms() -> float:
    """CPU milliseconds that all processes of the machine have used so far."""
    user, nice, system, *_ = (
        int(value) for value in Path("/proc/stat").read_text().split("\n")[0].split()[1:]
    )
    return (user + nice + system) * _TICK_MS


class PeakMemory:
    """Samples the memory of processes from a thread while the block runs, at its beginning and at its end.

    Args:
        processes: Asks for their ids by name.
        together: Names of those that count for `together_mb`; default: all.
    """

    def __init__(
        self, processes: Callable[[], Mapping[str, int]], *, together: Collection[str] | None = None
    ) -> None:
        self._processes = processes
        self._together = together
        self.peak_mb: dict[str, float] = {}
        self.together_mb = 0.0
        """Peak of their sum."""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def _sample(self) -> None:
        stopping = False
        while True:
            began = time.thread_time()
            now = {name: memory_mb(pid) for name, pid in self._processes().items()}
            for name, used in now.items():
                self.peak_mb[name] = max(self.peak_mb.get(name, 0.0), used)
            counted = now if self._together is None else self._together
            self.together_mb = max(self.together_mb, sum(now[name] for name in counted))
            if stopping:
                return
            # Or systems of many processes would be left with less of the cores than the others.
            stopping = self._stop.wait(max(_SAMPLE_S, (time.thread_time() - began) / _SAMPLING_CORES))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
