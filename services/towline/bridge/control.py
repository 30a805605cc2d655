"""Control commands: cancel, suspend, resume."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any, Final

from towline.bridge.answers import Answers, until_published
from towline.bridge.availability import Availability
from towline.bridge.core import (
    CONTROL,
    UNKNOWN_RUN_POLL_S,
    ControlStep,
    Standing,
    cancel_command,
    refusal,
    standing,
    terminated_by,
    termination_output,
)
from towline.bridge.errors import (
    RunUnknownError,
    SchedulerAwayError,
    SchedulerFaultError,
    SchedulerRefusedError,
)
from towline.bridge.scheduler import RunState, Scheduler
from towline.contracts import ids
from towline.contracts.durable import CANCEL_EVENT
from towline.contracts.errors import PayloadStoreAwayError, PublishError
from towline.contracts.events import Event, RunControl
from towline.delivery import DONE, Backoff, Deferred, Outcome, Retry

logger = logging.getLogger(__name__)

_TERMINATED_WAIT_S: Final = 10.0
_WATCH_SLICE_S: Final = 30.0


class Control:
    """Carries out `run.control`.

    Args:
        scheduler: Has the runs.
        availability: Is told when the scheduler is away.
        answers: Says what became of a command.
        unknown_run_grace_s: How long a run that is not known is waited for.
        cancel_grace_s: How long a run may take to end itself before it is terminated.
    """

    def __init__(
        self,
        *,
        scheduler: Scheduler,
        availability: Availability,
        answers: Answers,
        unknown_run_grace_s: float,
        cancel_grace_s: float,
    ) -> None:
        self._scheduler = scheduler
        self._availability = availability
        self._answers = answers
        self._unknown_run_grace_s = unknown_run_grace_s
        self._cancel_grace_s = cancel_grace_s

    async def carry_out(self, event: Event[RunControl], waited_s: float) -> Outcome:
        """Do what the run's state allows, or refuse it.

        Args:
            event: The command.
            waited_s: How long ago it was received here.
        """
        command = event.data
        if self._answers.may_have_given(ids.control_done_id(command.run_id, command.action, event.id)):
            # Its acknowledgement was lost: not judged anew, and not told later than what follows in its lane.
            await self._answers.control_done(event, suspended=command.action == "suspend")
            return DONE
        state = await self._scheduler.find(command.run_id)
        where = standing(
            state.phase if state else None, state.envelope if state else None, now=self._answers.now()
        )
        try:
            match CONTROL[command.action, where]:
                case ControlStep.WAIT:
                    if waited_s < self._unknown_run_grace_s:
                        return Retry("unknown_run", UNKNOWN_RUN_POLL_S)
                    return Deferred(self._refuse(event, where))
                case ControlStep.REFUSE:
                    assert state is not None
                    return await self._answer_ended(event, state)
                case ControlStep.TERMINATE:
                    await self._scheduler.terminate(
                        command.run_id, termination_output(event.id, command.reason)
                    )
                    return Deferred(self._see_cancel_through(event, grace_s=0.0))
                case ControlStep.RESUME_AND_CANCEL | ControlStep.CANCEL as step:
                    if step is ControlStep.RESUME_AND_CANCEL:
                        await self._scheduler.resume(command.run_id, "to be cancelled")
                    cancel = cancel_command(event.id, command.reason)
                    await self._scheduler.raise_event(
                        command.run_id, CANCEL_EVENT, cancel.model_dump(mode="json")
                    )
                    logger.info("cancel_raised", extra={"run_id": command.run_id})
                    return Deferred(self._see_cancel_through(event, grace_s=self._cancel_grace_s))
                case ControlStep.SUSPEND:
                    return await self._suspend_or_resume(event, where, suspend=True)
                case ControlStep.RESUME:
                    return await self._suspend_or_resume(event, where, suspend=False)
        except RunUnknownError:
            # Purged in between: looked at again, it is unknown.
            return Retry("run_gone", UNKNOWN_RUN_POLL_S)

    async def _suspend_or_resume(
        self, event: Event[RunControl], where: Standing, *, suspend: bool
    ) -> Outcome:
        command = event.data
        call = self._scheduler.suspend if suspend else self._scheduler.resume
        taken = True
        try:
            await call(command.run_id, command.reason)
        except SchedulerRefusedError:
            # It ended a moment ago, and this scheduler says so. Another cause shows in its state.
            taken = False
            logger.info("control_not_taken", extra={"run_id": command.run_id, "action": command.action})
        if suspend or where != "suspended" or not taken:
            state = await self._scheduler.find(command.run_id)
            if state is None or state.ended:
                return Deferred(self._refuse(event, "ended"))
        # A run that was suspended and has ended since did so because it was resumed.
        await self._answers.control_done(event, suspended=suspend)
        logger.info("run_suspended" if suspend else "run_resumed", extra={"run_id": command.run_id})
        return DONE

    async def _refuse(self, event: Event[RunControl], where: Standing) -> None:
        reason = refusal(where)
        # Not judged anew when Kafka's acknowledgement is lost: it may hold this answer already.
        await until_published(lambda: self._answers.control_refused(event, reason))
        logger.info(
            "control_refused",
            extra={"run_id": event.data.run_id, "action": event.data.action, "reason": reason},
        )

    async def _answer_ended(self, event: Event[RunControl], state: RunState) -> Outcome:
        """Refuse, unless this very command ended the run: then it came again after a crash."""
        marker = terminated_by(_json(state.output)) if state.phase == "terminated" else None
        if event.data.action == "cancel":
            if marker is not None and marker.command_id == event.id:
                await self._say_cancelled(event, state, marker.reason)
                return DONE
            if state.cancelled and event.id in (await self._scheduler.commands_of(state.run_id)).seen:
                return DONE
        return Deferred(self._refuse(event, "ended"))

    async def _see_cancel_through(self, event: Event[RunControl], *, grace_s: float) -> None:
        """Wait for the run to end; terminate it after the grace; answer. Outlives absent neighbours."""
        run_id = event.data.run_id
        loop = asyncio.get_running_loop()
        deadline = loop.time() + grace_s
        backoff, failures = Backoff(first_s=0.2, longest_s=10.0), 0
        while True:
            try:
                left_s = deadline - loop.time()
                wait_s = min(left_s, _WATCH_SLICE_S) if left_s > 0 else _TERMINATED_WAIT_S
                if await self._scheduler.wait_for_end(run_id, within_s=wait_s):
                    await self._answer_cancel(event)
                    return
                if loop.time() >= deadline:
                    logger.warning("run_terminated", extra={"run_id": run_id, "after_s": grace_s})
                    output = termination_output(event.id, event.data.reason)
                    await self._scheduler.terminate(run_id, output)
                failures = 0
            except (RunUnknownError, SchedulerRefusedError) as error:
                # Not terminated: it has ended a moment ago, or is gone. The next wait tells.
                logger.info("not_terminated", extra={"run_id": run_id, "error": repr(error)})
                failures += 1
                await asyncio.sleep(backoff.delay_s(failures))
            except (SchedulerAwayError, SchedulerFaultError, PayloadStoreAwayError, PublishError) as error:
                if isinstance(error, SchedulerAwayError):
                    self._availability.lost(str(error))
                failures += 1
                await asyncio.sleep(backoff.delay_s(failures))

    async def _answer_cancel(self, event: Event[RunControl]) -> None:
        state = await self._scheduler.find(event.data.run_id)
        if state is None:
            await self._refuse(event, "unknown")
        elif state.phase == "terminated":
            marker = terminated_by(_json(state.output))
            await self._say_cancelled(event, state, marker.reason if marker else event.data.reason)
        elif not state.cancelled:
            # It came to its own end first. The worker has told how; the command still needs its answer.
            await self._refuse(event, "ended")

    async def _say_cancelled(self, event: Event[RunControl], state: RunState, reason: str | None) -> None:
        run_type = state.envelope.run_type if state.envelope else None
        await self._answers.cancelled(state.run_id, run_type, reason, event)
        logger.info("run_cancelled", extra={"run_id": state.run_id})


def _json(text: str | None) -> Any:
    try:
        return json.loads(text or "null")
    except ValueError:
        return None
