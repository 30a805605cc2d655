"""Requests: a run is started, or the request is rejected."""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import Final, cast

from towline.bridge import metrics
from towline.bridge.answers import Answers, until_published
from towline.bridge.catalog import Catalog
from towline.bridge.core import Reject, Start, WaitForCatalog, decide_request, same_request
from towline.bridge.errors import RunExistsError, SchedulerRefusedError
from towline.bridge.scheduler import RunState, Scheduler
from towline.contracts.durable import wrap_input
from towline.contracts.errors import PublishError
from towline.contracts.events import ErrorInfo, Event, RunRequested
from towline.delivery import DONE, DeadLetter, Deferred, Outcome, Retry
from towline.telemetry.propagation import inject

logger = logging.getLogger(__name__)

_CATALOG_POLL_S: Final = 0.5


class Requests:
    """Carries out `run.requested`.

    Args:
        scheduler: Where runs are started.
        catalog: What there is to run.
        answers: Says what was rejected.
        run_type_grace_s: How long a run type that no app has registered is waited for.
        max_input_bytes: Largest input, as JSON.
    """

    def __init__(
        self,
        *,
        scheduler: Scheduler,
        catalog: Catalog,
        answers: Answers,
        run_type_grace_s: float,
        max_input_bytes: int,
    ) -> None:
        self._scheduler = scheduler
        self._catalog = catalog
        self._answers = answers
        self._run_type_grace_s = run_type_grace_s
        self._max_input_bytes = max_input_bytes

    async def carry_out(self, event: Event[RunRequested], waited_s: float, *, is_large: bool) -> Outcome:
        """Start the run, or reject the request.

        Args:
            event: The request.
            waited_s: How long ago it was received here.
            is_large: Judging it may take seconds, in which all else must go on.
        """
        decide = partial(
            decide_request,
            event,
            self._catalog,
            now=self._answers.now(),
            waited_s=waited_s,
            run_type_grace_s=self._run_type_grace_s,
            max_input_bytes=self._max_input_bytes,
        )
        decision = await asyncio.to_thread(decide) if is_large else decide()
        match decision:
            case WaitForCatalog():
                return Retry("no_app_registered", _CATALOG_POLL_S)
            case Reject():
                return await self._reject(event, decision.error)
            case Start():
                return await self._start(event, decision)

    async def _start(self, event: Event[RunRequested], start: Start) -> Outcome:
        run_id = start.envelope.run_id
        traceparent, tracestate = inject()
        envelope = start.envelope
        if traceparent is not None:
            envelope = envelope.model_copy(update={"traceparent": traceparent, "tracestate": tracestate})
        try:
            await self._scheduler.start(
                start.run_type, run_id, wrap_input(envelope, start.run_input), start.start_at
            )
        except RunExistsError:
            known = await self._scheduler.find(run_id)
            # Purged in between: the next attempt starts it.
            return Retry("run_gone") if known is None else self._judge_existing(event, known)
        except SchedulerRefusedError as error:
            kind = "input_too_large" if error.too_large else "refused_by_scheduler"
            return await self._reject(event, ErrorInfo(type=kind, message=f"the scheduler refused: {error}"))
        waits = start.start_at is not None and start.start_at > self._answers.now()
        metrics.runs_accepted.add(1, {"run_type": start.run_type, "starts": "later" if waits else "now"})
        logger.info("run_accepted", extra={"run_id": run_id, "run_type": start.run_type})
        return DONE

    async def _reject(self, event: Event[RunRequested], error: ErrorInfo) -> Outcome:
        run_id = cast("str", event.data.run_id)
        known = await self._scheduler.find(run_id)
        if known is not None:
            return self._judge_existing(event, known)
        logger.info("run_rejected", extra={"run_id": run_id, "error_type": error.type})
        try:
            await self._answers.rejected(event, error)
        except PublishError:
            # Not judged anew when Kafka's acknowledgement is lost: it may hold this answer already.
            return Deferred(until_published(lambda: self._answers.rejected(event, error)))
        return DONE

    def _judge_existing(self, event: Event[RunRequested], known: RunState) -> Outcome:
        if same_request(known.envelope, event.data):
            return DONE
        owner = known.envelope.request_id if known.envelope else None
        by = f"request {owner}" if owner else f"an orchestration {known.name!r} that Towline did not start"
        return DeadLetter(
            "run_id_conflict",
            f"data.run_id: {known.run_id} is taken by {by} of other content: choose another run_id",
        )
