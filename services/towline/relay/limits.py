"""Token buckets: one per caller, and one for work that is cheaper together. Pure."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

_BUCKETS_MAX: Final = 10_000


class RateLimiter:
    """At most `burst` requests at once and `rate_per_s` on average, by key.

    When there are too many, the least recently seen callers are forgotten and begin with a full bucket.
    """

    def __init__(self, *, rate_per_s: float, burst: int) -> None:
        self._rate_per_s = rate_per_s
        self._burst = burst
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, key: str, *, now: float) -> float:
        """0 if a request is let through, otherwise the seconds until the next one would be."""
        level, at = self._buckets.pop(key, (float(self._burst), now))
        level = min(self._burst, level + (now - at) * self._rate_per_s)
        wait_s = 0.0 if level >= 1 else (1 - level) / self._rate_per_s
        self._buckets[key] = (level if wait_s else level - 1, now)
        if len(self._buckets) > _BUCKETS_MAX:
            self._buckets.popitem(last=False)
        return wait_s


class Pace:
    """At most `burst` at once and `rate_per_s` on average, of work that says afterwards whether it counts."""

    def __init__(self, *, rate_per_s: float, burst: int) -> None:
        self._rate_per_s = rate_per_s
        self._burst = float(burst)
        self._level = float(burst)
        self._at: float | None = None

    def wait_s(self, *, now: float) -> float:
        """Seconds until the next piece of work may begin; 0: now."""
        self._fill(now)
        return max(0.0, 1 - self._level) / self._rate_per_s

    def left(self, *, now: float) -> float:
        """How many pieces may follow each other at once."""
        self._fill(now)
        return self._level

    def spend(self, *, now: float) -> None:
        """A piece of work that counts was done."""
        self._fill(now)
        self._level -= 1

    def _fill(self, now: float) -> None:
        if self._at is not None:
            self._level = min(self._burst, self._level + (now - self._at) * self._rate_per_s)
        self._at = now
