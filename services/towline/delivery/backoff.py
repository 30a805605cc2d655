"""Exponential backoff with jitter: the delay, not the waiting."""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """Delays that double from `first_s` to `longest_s`, spread downwards by up to half."""

    first_s: float = 0.1
    longest_s: float = 15.0

    def delay_s(self, attempt: int, *, spread: float | None = None) -> float:
        """Seconds to wait after the `attempt`-th failure, from 1.

        Args:
            attempt: How often it failed in a row.
            spread: 0 to 1, where in the jitter to be; default: anywhere.
        """
        whole = min(self.longest_s, self.first_s * 2 ** min(attempt - 1, 30))
        where = random.random() if spread is None else spread  # noqa: S311 - jitter, not a secret
        return whole * (0.5 + where / 2)
