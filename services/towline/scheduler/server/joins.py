"""Turns that wait a moment for more results: fan-in.

A turn that goes out with the first of several results is out of date when its worker gets at it, if that
takes long, and another has to follow, which replays all of it. So a turn whose instance has activities under
way is kept for part of the time that a worker takes for a turn of late, unless the last result comes first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeAlias

from towline.scheduler.engine.model import Instance, MessageKind

_SHARE: Final = 0.25
"""Part of a turn's usual time for which it is kept at most."""
_SHORTEST_S: Final = 0.002
"""Less is not worth a timer."""
_LONGEST_S: Final = 0.05
_NEWEST: Final = 0.1
"""Weight of the newest turn in the usual time."""

Later: TypeAlias = Callable[[float, Callable[[], None]], object]


class Joins:
    """Decides when a turn is offered.

    Args:
        later: Calls something after so many seconds.
    """

    def __init__(self, later: Later) -> None:
        self._later = later
        self._kept: set[int] = set()
        """Rows of the instances whose turn is kept."""
        self._turn_s = 0.0

    def took(self, seconds: float) -> None:
        """A worker has answered a turn so long after it was written to its stream."""
        self._turn_s += (seconds - self._turn_s) * _NEWEST

    def offer(self, instance: Instance, offer: Callable[[], None], *, more_to_come: bool) -> None:
        """Call `offer` now, or after a moment if `more_to_come`: the instance has activities under way.

        Whatever else than a result comes to an instance is not kept waiting, nor are the results before it.
        """
        row = instance.row
        wait_s = min(self._turn_s * _SHARE, _LONGEST_S)
        if not more_to_come or wait_s < _SHORTEST_S or instance.inbox[-1].kind is not MessageKind.RESULT:
            self._kept.discard(row)
            offer()
        elif row not in self._kept:
            self._kept.add(row)
            self._later(wait_s, lambda: self._release(row, offer))

    def _release(self, row: int, offer: Callable[[], None]) -> None:
        if row in self._kept:
            self._kept.discard(row)
            offer()

    def clear(self) -> None:
        """Forget what is kept."""
        self._kept.clear()
