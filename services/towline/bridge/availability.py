"""Whether the scheduler can be used: while it can't, consumption is held and one probe asks on."""

from __future__ import annotations

import asyncio
import logging
import time

from towline.bridge.errors import BridgeError
from towline.bridge.scheduler import Scheduler
from towline.delivery import Backoff

logger = logging.getLogger(__name__)


class Availability:
    """Starts as away: nothing is consumed before the scheduler has answered once."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._lost = asyncio.Event()
        self._lost.set()
        self.problem: str | None = "the scheduler has not answered yet"
        self.since = time.monotonic()
        """Monotonic seconds since when it answers: graces don't count what was before."""

    def lost(self, problem: str) -> None:
        """A call has failed: hold, and probe until it answers again."""
        if self.problem is None:
            logger.warning("scheduler_away", extra={"problem": problem})
        self.problem = problem
        self._lost.set()

    async def run(self) -> None:
        """Probe whenever the scheduler is away. Until cancelled."""
        backoff = Backoff(first_s=0.1, longest_s=3.0)
        while True:
            await self._lost.wait()
            self._lost.clear()
            attempt = 0
            while True:
                try:
                    await self._scheduler.ping()
                except BridgeError as error:
                    attempt += 1
                    self.problem = str(error)
                    if attempt == 1:
                        logger.warning("waiting_for_scheduler", extra={"problem": self.problem})
                    await asyncio.sleep(backoff.delay_s(attempt))
                else:
                    break
            if not self._lost.is_set():
                self.since = time.monotonic()
                self.problem = None
                logger.info("scheduler_answers")
