"""Tells that runs have started, a moment after they have, where another turn is sure to follow.

The first turn of most runs has nothing else to say: it calls an agent or an activity, and the call would wait
for Kafka. Such a turn is reported at once. That the run has started goes out with what its next turn says, or
after 50 ms, whichever comes first; and the next turn is not reported before Kafka has it. Who carries out a
run's second turn and does not know the first one from here, because another worker had that and may have died
in between, says it again, under the same id (decision 0017).
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from towline.contracts.events import Event

PATIENCE_S: Final = 0.05
"""So long a beginning waits for what it could go out with."""
_OPEN_MAX: Final = 1_000
"""Beginnings that Kafka has not yet; beyond it none is put off."""
_TOLD_MAX: Final = 10_000
"""Beginnings that Kafka has, the newest. Of another one a second turn here says it once more."""

_log = logging.getLogger(__name__)

Publish = Callable[[Sequence[Event]], Awaitable[None]]
"""Publishes in order, however long it takes."""


@dataclass(slots=True)
class _Beginning:
    event: Event
    due_at: float
    """When it goes out by itself, of the loop's time."""
    claimed: bool = False
    """A turn sends it along with what it says itself."""
    sending: asyncio.Task[None] | None = None
    """It is under way without a turn."""


class Beginnings:
    """What this process has put off to say, by the run's instance. Belongs to one loop."""

    def __init__(self, publish: Publish) -> None:
        self._publish = publish
        self._open: dict[str, _Beginning] = {}
        self._told: OrderedDict[str, None] = OrderedDict()
        self._sendings: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    @property
    def has_room(self) -> bool:
        """Whether one more may be put off."""
        return len(self._open) < _OPEN_MAX

    def is_known(self, instance_id: str) -> bool:
        """Whether it was told from here, or will be. From any thread."""
        return instance_id in self._open or instance_id in self._told

    def is_open(self, instance_id: str) -> bool:
        """Whether it was put off and Kafka has it not yet."""
        return instance_id in self._open

    def put_off(self, instance_id: str, event: Event) -> None:
        """Say `event` soon."""
        due_at = asyncio.get_running_loop().time() + PATIENCE_S
        self._open.setdefault(instance_id, _Beginning(event, due_at))
        self._set_timer(due_at)

    async def claim(self, instance_id: str) -> list[Event]:
        """What the instance's next turn has to say first: then it is `told`, or the claim is `released`.

        One that is under way already is waited for.
        """
        while (beginning := self._open.get(instance_id)) is not None:
            if beginning.sending is None:
                beginning.claimed = True
                return [beginning.event]
            await asyncio.wait({beginning.sending})
        return []

    def release(self, instance_id: str) -> None:
        """The turn that has claimed it gives up."""
        beginning = self._open.get(instance_id)
        if beginning is not None and beginning.claimed:
            beginning.claimed = False
            self._set_timer(beginning.due_at)

    def told(self, instance_id: str) -> None:
        """Kafka has it."""
        self._open.pop(instance_id, None)
        self._told[instance_id] = None
        self._told.move_to_end(instance_id)
        while len(self._told) > _TOLD_MAX:
            self._told.popitem(last=False)

    async def flush(self) -> None:
        """Send what waits; returns when Kafka has it or `close` was called."""
        self._cancel_timer()
        self._send(self._waiting())
        if self._sendings:
            await asyncio.wait(set(self._sendings))

    def close(self) -> None:
        """Give up what Kafka has not yet: whoever carries out the runs' next turns says it again."""
        self._closed = True
        self._cancel_timer()
        for task in self._sendings:
            task.cancel()

    def _set_timer(self, due_at: float) -> None:
        if self._timer is None and not self._closed:
            self._timer = asyncio.get_running_loop().call_at(due_at, self._send_if_due)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _send_if_due(self) -> None:
        """Send all that waits if one is due: the one that the timer was set for may have gone with a turn."""
        self._timer = None
        waiting = self._waiting()
        due_at = min((beginning.due_at for beginning in waiting.values()), default=0.0)
        if due_at <= asyncio.get_running_loop().time():
            self._send(waiting)
        else:
            self._set_timer(due_at)

    def _waiting(self) -> dict[str, _Beginning]:
        return {
            instance_id: beginning
            for instance_id, beginning in self._open.items()
            if not beginning.claimed and beginning.sending is None
        }

    def _send(self, waiting: Mapping[str, _Beginning]) -> None:
        if waiting:
            task = asyncio.create_task(self._send_all(waiting), name="worker-beginnings")
            self._sendings.add(task)
            task.add_done_callback(self._sendings.discard)
            for beginning in waiting.values():
                beginning.sending = task

    async def _send_all(self, waiting: Mapping[str, _Beginning]) -> None:
        try:
            await self._publish([beginning.event for beginning in waiting.values()])
        except Exception:  # noqa: BLE001 — the root of this task
            _log.exception("beginnings_not_told", extra={"count": len(waiting)})
            # One of them may be what can't be told: each goes with its own run's next turn.
            for beginning in waiting.values():
                beginning.claimed = True
        else:
            for instance_id in waiting:
                self.told(instance_id)
        finally:
            for beginning in waiting.values():
                beginning.sending = None
