"""Outcomes of runs that ended without a worker's turn: terminated, or failed by the scheduler itself.

A worker tells of every end that its code comes to, before the scheduler knows it. These ends it never sees.
What is swept twice, by a restarted bridge or two of them, carries the same event id.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import OrderedDict
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Final

from towline.bridge.answers import Answers
from towline.bridge.core import terminated_by
from towline.bridge.errors import BridgeError, SchedulerFaultError, SchedulerRefusedError
from towline.bridge.scheduler import RunState, Scheduler
from towline.contracts.errors import PayloadStoreAwayError, PublishError
from towline.contracts.events import ErrorInfo

logger = logging.getLogger(__name__)

_KNOWN_MAX_COUNT: Final = 50_000
_REASON_MAX_LENGTH: Final = 500


class Sweeper:
    """Looks over recently ended runs every `every_s`.

    Args:
        scheduler: Where they are looked for.
        answers: Where their outcome is said.
        every_s: Seconds between looks.
        window_s: How far back, in seconds.
        mine: Whether this replica is the one to sweep; all would do no harm, but say everything twice.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        answers: Answers,
        *,
        every_s: float,
        window_s: float,
        mine: Callable[[], bool],
    ) -> None:
        self._scheduler = scheduler
        self._answers = answers
        self._every_s = every_s
        self._window = timedelta(seconds=window_s)
        self._mine = mine
        self._known: OrderedDict[str, None] = OrderedDict()

    async def run(self) -> None:
        """Sweep until cancelled. Neighbours that are away are waited for."""
        while True:
            await asyncio.sleep(self._every_s)
            if not self._mine():
                continue
            try:
                await self.sweep()
            except (BridgeError, PublishError) as error:
                logger.warning("sweep_broken_off", extra={"error": str(error)})

    async def sweep(self) -> int:
        """Look once; how many outcomes were published.

        Raises:
            BridgeError, PublishError: A neighbour is away; what is left is done next time.
        """
        published = 0
        for run_id in await self._scheduler.ended_ids(since=self._answers.now() - self._window):
            if run_id in self._known or self._answers.has_told(run_id):
                continue
            try:
                published += await self._look_at(run_id)
            except (SchedulerFaultError, SchedulerRefusedError, PayloadStoreAwayError) as error:
                # Of this run alone: the others must not wait for it.
                logger.warning("outcome_not_swept", extra={"run_id": run_id, "error": str(error)})
        return published

    async def _look_at(self, run_id: str) -> bool:
        state = await self._scheduler.find(run_id)
        if state is None or not state.ended:
            return False
        published = await self._tell(state)
        self._remember(run_id)
        return published

    async def _tell(self, state: RunState) -> bool:
        envelope = state.envelope
        if envelope is None or envelope.role != "run":
            return False
        if state.phase == "terminated":
            reason = _reason(state.output)
            await self._answers.cancelled(state.run_id, envelope.run_type, reason, None)
        elif state.phase == "failed" and state.failed_by_server and not state.cancelled:
            error = ErrorInfo(type=state.error_type or "Error", message=state.error_message or "")
            await self._answers.failed(state.run_id, envelope.run_type, error, state.updated_at)
        else:
            return False
        logger.info("outcome_swept", extra={"run_id": state.run_id, "phase": state.phase})
        return True

    def _remember(self, run_id: str) -> None:
        self._known[run_id] = None
        if len(self._known) > _KNOWN_MAX_COUNT:
            self._known.popitem(last=False)


def _reason(output: str | None) -> str | None:
    try:
        value: Any = json.loads(output or "null")
    except ValueError:
        return None
    if (cancel := terminated_by(value)) is not None:
        return cancel.reason
    return value[:_REASON_MAX_LENGTH] if isinstance(value, str) else "terminated"
