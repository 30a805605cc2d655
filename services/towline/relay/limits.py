"""Token buckets, one per caller. Pure."""

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
