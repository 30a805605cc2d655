"""How soon a consumer reads again: at once while there are cores to spare, else in larger batches.

A read costs the consumer, the broker and whatever works on its records a wake-up, however little it brings.
With cores to spare nobody gains by waiting. When this process has to wait for a core whenever it wants one,
what it takes for small reads is missing where the records' work is done; then reads are up to 50 ms apart.
Measured in docs/decisions/0013-paced-reads.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

_SCHEDSTAT: Final = Path("/proc/self/schedstat")
"""Linux: nanoseconds on a core and nanoseconds of waiting for one, of the main thread: the loop's."""
_LOOK_S: Final = 0.5
"""Between two looks."""
_MEMORY: Final = 0.5
"""What the share before the last look counts."""
_SPARE: Final = 0.10
"""Up to this share of the time waited for a core, cores count as free. One run after the other: 0.04; 40 a
second on two cores: 0.1."""
_SHORT: Final = 0.15
"""From this share on reads are as far apart as they may be. Both cores busy: 0.15 to 0.3."""
_LONGEST_S: Final = 0.05


class CoreWaits:
    """The share of the time for which the event loop had something to do and no core to do it on."""

    def __init__(self, schedstat: Path = _SCHEDSTAT) -> None:
        self._schedstat = schedstat
        self._share = 0.0
        self._last: tuple[float, int] | None = None

    def share(self, *, now: float) -> float:
        """0 to 1, of about the last second; 0 where the system does not tell. `now` in monotonic seconds."""
        if self._last is not None and now < self._last[0] + _LOOK_S:
            return self._share
        waited_ns = self._read()
        if self._last is not None:
            at, before_ns = self._last
            latest = min(1.0, max(0.0, (waited_ns - before_ns) / 1e9 / (now - at)))
            self._share = _MEMORY * self._share + (1 - _MEMORY) * latest
        self._last = now, waited_ns
        return self._share

    def _read(self) -> int:
        try:
            return int(self._schedstat.read_text().split()[1])
        except (OSError, ValueError, IndexError):
            return 0


class ReadPace:
    """The time between two reads that bring something."""

    def __init__(self, waits: CoreWaits | None = None) -> None:
        self._waits = waits or CoreWaits()
        self._read_at: float | None = None

    def wait_s(self, *, now: float) -> float:
        """Seconds until the next read; 0: now."""
        short = (self._waits.share(now=now) - _SPARE) / (_SHORT - _SPARE)
        if self._read_at is None or short <= 0:
            return 0.0
        return max(0.0, self._read_at + _LONGEST_S * min(1.0, short) - now)

    def note(self, *, now: float) -> None:
        """A read has brought something."""
        self._read_at = now
