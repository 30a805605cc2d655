"""How often Kafka is read, and how long each read waits.

A read that brings something costs round trips however little it brings, and each event wakes the relay. So
under load what comes shortly after one another shares a read: a few events within 100 ms while somebody
listens, many within a quarter of a second while nobody does. A few runs in flight never reach either rate.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Final

from towline.relay.audience import Audience
from towline.relay.limits import Pace
from towline.relay.member import wait_for

RECORDS_MAX: Final = 500
"""Of one read."""
_PER_S: Final = 10
_AT_ONCE: Final = 8
_QUIET_PER_S: Final = 4
_QUIET_AT_ONCE: Final = 4
_SPARING_BELOW: Final = 2
"""A steady load leaves between none and one of the reads that may follow each other at once."""
_POLL_MS: Final = 300
_POLL_HELD_MS: Final = 20
"""Between two looks at outcomes that should be ready, but whose run's last tokens are still missing."""
_POLL_HELD_SPARING_MS: Final = 100
_FULL_BYTES: Final = 512 * 1024
"""A fetch brings at most a megabyte of a partition, and only what is whole."""
_GATHERED_BYTES: Final = 1024 * 1024


class Reads:
    """When the next read begins, and what it is content with.

    It spares while nobody listens and more came lately than a run at rest brings.
    """

    def __init__(self, audience: Audience) -> None:
        self._audience = audience
        self._quick = Pace(rate_per_s=_PER_S, burst=_AT_ONCE)
        self._quiet = Pace(rate_per_s=_QUIET_PER_S, burst=_QUIET_AT_ONCE)

    async def turn(self) -> None:
        """Wait until the next read may begin: at once when somebody comes."""
        now = time.monotonic()
        if self._audience.anywhere(now=now):
            await asyncio.sleep(self._quick.wait_s(now=now))
        else:
            await wait_for(self._audience.arrival.wait(), self._quiet.wait_s(now=now))

    def brought(self, sizes_bytes: Sequence[int], *, now: float) -> None:
        """A read brought records of these sizes; one that brought none does not count."""
        if not sizes_bytes:
            return
        if self._audience.anywhere(now=now):
            self._quick.spend(now=now)
        elif len(sizes_bytes) < RECORDS_MAX and sum(sizes_bytes) < _FULL_BYTES:
            # Behind a full read more is waiting: what has piled up would come four times a second, if at all.
            self._quiet.spend(now=now)

    def min_bytes(self, *, now: float) -> int:
        """What brokers gather before they answer, for as long as `member` lets them."""
        return _GATHERED_BYTES if self._spares(now) else 1

    def timeout_ms(self, due_in_s: float | None, *, now: float) -> int:
        """How long a read waits for something to come.

        Args:
            due_in_s: Until the first outcome that is held is due; None if none is.
            now: Seconds on a clock that only goes forward.
        """
        if due_in_s is None:
            return _POLL_MS
        return max(_POLL_HELD_SPARING_MS if self._spares(now) else _POLL_HELD_MS, round(due_in_s * 1000))

    def _spares(self, now: float) -> bool:
        return not self._audience.anywhere(now=now) and self._quiet.left(now=now) < _SPARING_BELOW
