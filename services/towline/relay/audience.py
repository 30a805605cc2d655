"""Whether anybody could notice that the relay is late. Knows no I/O.

A run's readers may be connected to one relay and its events be read from Kafka by another: so who listens to
any of them listens to all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

_ASKED_S: Final = 10.0
"""Who has asked for something may ask again: a page that is looked at does every few seconds."""


class Audience:
    """Who listens.

    Args:
        client_count: How many clients of streams this relay has now.
    """

    def __init__(self, client_count: Callable[[], int]) -> None:
        self._client_count = client_count
        self._asked_at: float | None = None
        self.elsewhere = False
        """What Redis said last: somebody listened to one of the relays, maybe this one."""
        self.arrival = asyncio.Event()
        """Set when somebody comes to this relay to which nobody listened. Each arrival has one of its own."""

    def asked(self, *, now: float) -> None:
        """A request of the API has come. So has each client of a stream before it is one."""
        if not self.here(now=now):
            self.arrival.set()
            self.arrival = asyncio.Event()
        self._asked_at = now

    def here(self, *, now: float) -> bool:
        """Whether anybody listens to this relay."""
        return self._client_count() > 0 or (self._asked_at is not None and now - self._asked_at < _ASKED_S)

    def anywhere(self, *, now: float) -> bool:
        """Whether anybody listens to this relay or, as far as is known, to another."""
        return self.elsewhere or self.here(now=now)
