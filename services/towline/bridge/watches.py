"""Watches over commands that were raised into a run, until it is certain who answers them.

A run takes what was raised at its next turn; from then on its worker answers. A run that ends first never
sees it, and the scheduler says nothing: then the bridge answers. One watch per run serves all its commands.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from typing import Final

from towline.bridge.availability import Availability
from towline.bridge.errors import RunUnknownError, SchedulerAwayError, SchedulerFaultError
from towline.bridge.scheduler import Commands, Scheduler
from towline.contracts.errors import PayloadStoreAwayError
from towline.delivery import Backoff

logger = logging.getLogger(__name__)

_PATIENCE_S: Final = (0.1, 0.4, 2.0, 5.0, 10.0, 30.0)
"""Between looks at a run. With a worker up the first one settles it."""
_LOOK_EVERY_S: Final = 0.02
"""Of so many watches, each waits this much longer: however many decisions come at once, there are 50 looks a
second. A look reads a whole history; a worker with a backlog has not seen what came last any sooner."""
_LONG_S: Final = 1.0
"""Longer waits, but for the first, are made at the scheduler, which answers at once when the run ends."""


@dataclass(slots=True)
class _Watch:
    waiting: dict[str, list[asyncio.Future[bool]]] = field(
        default_factory=dict[str, "list[asyncio.Future[bool]]"]
    )
    joined: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None


class Watches:
    """All watches of one bridge."""

    def __init__(self, scheduler: Scheduler, availability: Availability, *, max_count: int = 256) -> None:
        self._scheduler = scheduler
        self._availability = availability
        self._slots = asyncio.Semaphore(max_count)
        self._watches: dict[str, _Watch] = {}

    async def seen(self, run_id: str, command_id: str) -> bool:
        """True once the run has seen the command; False when it ended without.

        Outlives the absence of scheduler and payload store. Cancellation safe: the watch ends with the last
        one who waits.
        """
        watch = self._watches.get(run_id)
        if watch is None:
            watch = self._watches[run_id] = _Watch()
            watch.task = asyncio.create_task(self._run(run_id, watch), name=f"watch-{run_id}")
        future = asyncio.get_running_loop().create_future()
        watch.waiting.setdefault(command_id, []).append(future)
        watch.joined.set()
        try:
            return await future
        finally:
            if (waiting := watch.waiting.get(command_id)) and future in waiting:
                waiting.remove(future)
                if not waiting:
                    del watch.waiting[command_id]
                if not watch.waiting:
                    self._end(run_id, watch)

    def _end(self, run_id: str, watch: _Watch) -> None:
        if self._watches.get(run_id) is watch:
            del self._watches[run_id]
        if watch.task is not None:
            watch.task.cancel()

    async def _run(self, run_id: str, watch: _Watch) -> None:
        try:
            await self._look_on(run_id, watch)
        except Exception as error:  # noqa: BLE001 - whoever waits gets it
            for command_id in list(watch.waiting):
                for future in watch.waiting.pop(command_id):
                    if not future.done():
                        future.set_exception(error)
        finally:
            if self._watches.get(run_id) is watch:
                del self._watches[run_id]

    async def _look_on(self, run_id: str, watch: _Watch) -> None:
        step, backoff, failures = 0, Backoff(first_s=0.2, longest_s=10.0), 0
        while watch.waiting:
            if watch.joined.is_set():
                watch.joined.clear()
                step = 0
            try:
                patience_s = patience(step, len(self._watches))
                if step == 0 or patience_s < _LONG_S:
                    await asyncio.sleep(patience_s)
                else:
                    await self._wait_for_end(run_id, watch, patience_s)
                # Only what was raised before the look can be missing from it for good.
                asked = frozenset(watch.waiting)
                async with self._slots:
                    commands = await self._scheduler.commands_of(run_id)
            except RunUnknownError:
                commands, asked = Commands(frozenset(), ended=True), frozenset(watch.waiting)
            except (SchedulerAwayError, SchedulerFaultError, PayloadStoreAwayError) as error:
                if isinstance(error, SchedulerAwayError):
                    self._availability.lost(str(error))
                failures += 1
                await asyncio.sleep(backoff.delay_s(failures))
                continue
            step, failures = step + 1, 0
            for command_id in asked:
                if command_id in commands.seen or commands.ended:
                    for future in watch.waiting.pop(command_id, ()):
                        # One that was cancelled a moment ago is still among them.
                        if not future.done():
                            future.set_result(command_id in commands.seen)

    async def _wait_for_end(self, run_id: str, watch: _Watch, patience_s: float) -> None:
        async with self._slots:
            end = asyncio.ensure_future(self._scheduler.wait_for_end(run_id, within_s=patience_s))
            # Broken off below, it may fail all the same: that is nobody's business any more.
            end.add_done_callback(lambda task: task.cancelled() or task.exception())
            joined = asyncio.ensure_future(watch.joined.wait())
            try:
                await asyncio.wait({end, joined}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                joined.cancel()
                if not end.done():
                    end.cancel()
        if end.done() and not end.cancelled():
            end.result()


def patience(step: int, watches: int) -> float:
    """Seconds until the next look.

    Args:
        step: Looks that were in vain since the newest command came.
        watches: How many runs are watched.
    """
    longest_s = _PATIENCE_S[-1]
    return min(max(_PATIENCE_S[min(step, len(_PATIENCE_S) - 1)], watches * _LOOK_EVERY_S), longest_s)
