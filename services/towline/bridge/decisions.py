"""Decisions and raised events: handed to their run, or refused."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from towline.bridge.answers import Answers, until_published
from towline.bridge.core import UNKNOWN_RUN_POLL_S, Decision, raised_command
from towline.bridge.errors import RunUnknownError, SchedulerRefusedError
from towline.bridge.scheduler import Scheduler
from towline.bridge.watches import Watches
from towline.contracts.canonical import canonical_json
from towline.contracts.durable import DECISION_EVENT
from towline.contracts.events import ApprovalRefusal
from towline.delivery import DeadLetter, Deferred, KafkaRecord, Outcome, Retry

if TYPE_CHECKING:
    from towline.bridge.approvers import ApprovalPolicy

logger = logging.getLogger(__name__)

_REQUEUE_AFTER_S: Final = 600.0


class Decisions:
    """Carries out `approval.decided` and `event.raised`.

    Args:
        scheduler: Has the runs.
        watches: Sees when a run has taken a command.
        answers: Says what was refused.
        unknown_run_grace_s: How long a run that is not known is waited for.
        max_data_bytes: Largest data, as JSON.
        policy: Who may decide; None: anybody.
    """

    def __init__(
        self,
        *,
        scheduler: Scheduler,
        watches: Watches,
        answers: Answers,
        unknown_run_grace_s: float,
        max_data_bytes: int,
        policy: ApprovalPolicy | None,
    ) -> None:
        self._scheduler = scheduler
        self._watches = watches
        self._answers = answers
        self._unknown_run_grace_s = unknown_run_grace_s
        self._max_data_bytes = max_data_bytes
        self._policy = policy

    async def carry_out(self, event: Decision, record: KafkaRecord, waited_s: float) -> Outcome:
        """Hand it to its run, and see that the run takes it, or refuse it.

        Args:
            event: The decision.
            record: As it came from Kafka.
            waited_s: How long ago it was received here.
        """
        run_id = event.data.run_id
        size = len(canonical_json(event.data.data))
        if size > self._max_data_bytes:
            return DeadLetter(
                "data_too_large",
                f"data.data: has {size} bytes as JSON, at most {self._max_data_bytes} are taken: "
                "make it smaller, or raise TOWLINE_BRIDGE_MAX_INPUT_BYTES",
            )
        command = raised_command(event)
        try:
            if self._policy is not None and (why := await self._forbidden(event, self._policy)) is not None:
                return Deferred(self._refuse_decision(event, "not_authorized", why))
            await self._scheduler.raise_event(run_id, DECISION_EVENT, command.model_dump(mode="json"))
        except RunUnknownError:
            if waited_s < self._unknown_run_grace_s:
                return Retry("unknown_run", UNKNOWN_RUN_POLL_S)
            return Deferred(self._refuse_decision(event, "unknown_run"))
        except SchedulerRefusedError as error:
            return DeadLetter("refused_by_scheduler", f"the scheduler refused to raise it: {error}")
        return Deferred(self._see_decision_through(event, record))

    async def _forbidden(self, event: Decision, policy: ApprovalPolicy) -> str | None:
        """Why the policy refuses it.

        Raises:
            RunUnknownError: There is no such run. A run's child is none: by its id rules for its run would be
                got round.
        """
        state = await self._scheduler.find(event.data.run_id)
        if state is None or state.envelope is None or state.envelope.role != "run":
            raise RunUnknownError
        return policy.refuses(event, run_type=state.envelope.run_type, run_created_at=state.created_at)

    async def _see_decision_through(self, event: Decision, record: KafkaRecord) -> None:
        """Wait until the run has seen it, or has ended without: then refuse it.

        A run may take days to look: it starts later, or no worker is up. Its decision is then published
        anew, as it is, so that the offset of this one does not hold back all that follow. That the run is
        handed it twice does not matter: the book of asks knows the command's id.
        """
        run_id = event.data.run_id
        try:
            async with asyncio.timeout(_REQUEUE_AFTER_S):
                seen = await self._watches.seen(run_id, event.id)
        except TimeoutError:
            await until_published(lambda: self._answers.again(record))
            return
        if not seen:
            await self._refuse_decision(event, "run_finished")

    async def _refuse_decision(
        self,
        event: Decision,
        reason: ApprovalRefusal,
        message: str | None = None,
    ) -> None:
        # Not judged anew when Kafka's acknowledgement is lost: it may hold this answer already.
        await until_published(lambda: self._answers.approval_refused(event, reason, message))
        logger.info(
            "decision_refused",
            extra={"run_id": event.data.run_id, "reason": reason, "why": message, "source": event.source},
        )
