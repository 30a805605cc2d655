"""Carries out commands and decisions: what `core` decides, done at the scheduler and said on Kafka."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, Hashable
from typing import TYPE_CHECKING, Any, Final, TypeAlias, cast

from opentelemetry import trace
from opentelemetry.context import Context, get_current
from opentelemetry.trace import SpanKind, Status, StatusCode

from towline.bridge import metrics
from towline.bridge.answers import Answers
from towline.bridge.availability import Availability
from towline.bridge.catalog import Catalog
from towline.bridge.core import (
    CONTROL,
    ControlStep,
    Reject,
    Standing,
    Start,
    WaitForCatalog,
    answer_ids,
    cancel_command,
    decide_request,
    raised_command,
    refusal,
    same_request,
    standing,
    terminated_by,
    termination_output,
)
from towline.bridge.errors import (
    AnswersUnreadableError,
    RunExistsError,
    RunUnknownError,
    SchedulerAwayError,
    SchedulerFaultError,
    SchedulerRefusedError,
)
from towline.bridge.recall import Recall
from towline.bridge.scheduler import RunState, Scheduler
from towline.bridge.settings import BridgeSettings
from towline.bridge.watches import Watches
from towline.contracts.canonical import canonical_json
from towline.contracts.cloudevents import decode
from towline.contracts.durable import CANCEL_EVENT, DECISION_EVENT, wrap_input
from towline.contracts.errors import (
    DataElsewhereError,
    DecodeError,
    PayloadStoreAwayError,
    PublishError,
)
from towline.contracts.events import (
    ApprovalDecided,
    ApprovalRefusal,
    ErrorInfo,
    Event,
    EventRaised,
    RunControl,
    RunRequested,
)
from towline.contracts.payloads import PayloadStore, decode_resolved
from towline.contracts.tracing import context_of, process_attributes, tracing_is_on
from towline.delivery import DONE, Backoff, DeadLetter, Deferred, Delivery, KafkaRecord, Outcome, Retry
from towline.telemetry import conventions
from towline.telemetry.propagation import in_trace, inject
from towline.telemetry.runs import RunRef, in_run

if TYPE_CHECKING:
    from towline.bridge.approvers import ApprovalPolicy

logger = logging.getLogger(__name__)
tracer = trace.get_tracer("towline.bridge")

Command: TypeAlias = Event | DecodeError
_GRACE_POLL_S: Final = 1.0
_CATALOG_POLL_S: Final = 0.5
_TERMINATED_WAIT_S: Final = 10.0
_WATCH_SLICE_S: Final = 30.0
_REQUEUE_AFTER_S: Final = 600.0
_INPUT_BYTES: Final = 1_000_000
_ENVELOPE_BYTES: Final = 65_536
"""Room for what travels around an input: tags, trace context, names."""


def read(record: KafkaRecord) -> tuple[Hashable, Command]:
    """A record's lane (its run) and event; what can't be decoded is handled as the error that says why."""
    try:
        event = decode(key=record.key, value=record.value, headers=record.headers)
    except DataElsewhereError as error:
        # The data is fetched by the handler, in its run's lane: what comes after it waits for it.
        return error.subject or (record.key or b"").decode("utf-8", "replace"), error
    except DecodeError as error:
        return ("undecodable", record.key), error
    return getattr(event.data, "run_id", event.id), event


class Commands:
    """The handler of both command topics.

    Every call may come again after a crash: what it does at the scheduler is idempotent by run id or
    command id, and what it says has deterministic ids.
    """

    def __init__(
        self,
        settings: BridgeSettings,
        *,
        scheduler: Scheduler,
        availability: Availability,
        catalog: Catalog,
        answers: Answers,
        recall: Recall,
        watches: Watches,
        payloads: PayloadStore | None = None,
        policy: ApprovalPolicy | None = None,
    ) -> None:
        self._settings = settings
        self._policy = policy
        self._payloads = payloads
        store_bytes = None if payloads is None else max(1, payloads.max_bytes - _ENVELOPE_BYTES)
        self._max_input_bytes = settings.max_input_bytes or store_bytes or _INPUT_BYTES
        self._scheduler = scheduler
        self._availability = availability
        self._catalog = catalog
        self._answers = answers
        self._recall = recall
        self._watches = watches

    async def handle(self, delivery: Delivery[Command]) -> Outcome:
        """Carry out one command."""
        event = delivery.message
        if isinstance(event, DataElsewhereError) and self._payloads is not None:
            try:
                event = await _fetched(delivery.record, self._payloads)
            except PayloadStoreAwayError as error:
                return _store_away(error)
        if isinstance(event, DecodeError):
            return DeadLetter(event.reason, str(event))
        with in_run(_run_of(event)):
            outcome = await self._traced(event, delivery)
        if not isinstance(outcome, Retry):
            metrics.record_delay(event.type, event.time, self._answers.now())
        return outcome

    async def _traced(self, event: Event, delivery: Delivery[Command]) -> Outcome:
        """Carry it out in a span of the sender's trace."""
        if not tracing_is_on():
            # What is said and started goes into the sender's trace all the same.
            with in_trace(event.traceparent, event.tracestate):
                return await self._attempt(event, delivery)
        record = delivery.record
        with tracer.start_as_current_span(
            f"process {record.topic}",
            context=_below(event),
            kind=SpanKind.CONSUMER,
            attributes=process_attributes(record.topic, record.partition, record.offset, event),
        ) as span:
            outcome = await self._attempt(event, delivery)
            if isinstance(outcome, Retry | DeadLetter):
                span.set_attribute(conventions.REASON, outcome.reason)
            if isinstance(outcome, DeadLetter):
                span.set_status(Status(StatusCode.ERROR, outcome.reason))
            return outcome

    async def _attempt(self, event: Event, delivery: Delivery[Command]) -> Outcome:
        try:
            if await self._is_answered(event, delivery):
                logger.info("answered_before", extra={"event_id": event.id})
                return DONE
            return await self._dispatch(event, delivery)
        except AnswersUnreadableError:
            return Retry("kafka_away")
        except SchedulerAwayError as error:
            self._availability.lost(str(error))
            return Retry("scheduler_away")
        except PublishError:
            return Retry("kafka_away")
        except PayloadStoreAwayError as error:
            return _store_away(error)

    async def _is_answered(self, event: Event, delivery: Delivery[Command]) -> bool:
        """Whether the command has its answer already: then it is not judged anew, the run has moved on."""
        answers = answer_ids(event)
        # The same command sent twice, or handed to us again after a rebalance.
        if any(self._answers.has_given(answer) for answer in answers):
            return True
        if not answers or delivery.assigned_at is None:
            return False
        sent_ms = delivery.record.timestamp
        published = await self._recall.published(since_ms=sent_ms, after=delivery.assigned_at)
        if isinstance(event.data, RunRequested):
            # An earlier request of the same run_id may have been rejected; this one is another.
            return published.get(answers[0], -1) >= sent_ms
        return any(answer in published for answer in answers)

    async def _dispatch(self, event: Event, delivery: Delivery[Command]) -> Outcome:
        waited_s = time.monotonic() - delivery.received_at
        match event.data:
            case RunRequested():
                return await self._request(cast("Event[RunRequested]", event), waited_s)
            case RunControl():
                return await self._control(cast("Event[RunControl]", event), waited_s)
            case ApprovalDecided() | EventRaised():
                decision = cast("Event[ApprovalDecided] | Event[EventRaised]", event)
                return await self._raise(decision, delivery.record, waited_s)
            case _:
                return DeadLetter(
                    "wrong_topic",
                    f"ce_type: {event.type} belongs on the topic {event.data.topic}; this one takes commands",
                )

    # -- requests --------------------------------------------------------------------------------------

    async def _request(self, event: Event[RunRequested], waited_s: float) -> Outcome:
        decision = decide_request(
            event,
            self._catalog,
            now=self._answers.now(),
            waited_s=waited_s,
            run_type_grace_s=self._settings.run_type_grace_s,
            max_input_bytes=self._max_input_bytes,
        )
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
        metrics.runs_accepted.add(1, {"run_type": start.run_type})
        logger.info("run_accepted", extra={"run_id": run_id, "run_type": start.run_type})
        return DONE

    async def _reject(self, event: Event[RunRequested], error: ErrorInfo) -> Outcome:
        run_id = cast("str", event.data.run_id)
        known = await self._scheduler.find(run_id)
        if known is not None:
            return self._judge_existing(event, known)
        await self._answers.rejected(event, error)
        logger.info("run_rejected", extra={"run_id": run_id, "error_type": error.type})
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

    # -- control ---------------------------------------------------------------------------------------

    async def _control(self, event: Event[RunControl], waited_s: float) -> Outcome:
        command = event.data
        state = await self._scheduler.find(command.run_id)
        where = standing(
            state.phase if state else None, state.envelope if state else None, now=self._answers.now()
        )
        try:
            match CONTROL[command.action, where]:
                case ControlStep.WAIT:
                    if waited_s < self._settings.unknown_run_grace_s:
                        return Retry("unknown_run", _GRACE_POLL_S)
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
                    return Deferred(self._see_cancel_through(event, grace_s=self._settings.cancel_grace_s))
                case ControlStep.SUSPEND:
                    return await self._suspend_or_resume(event, where, suspend=True)
                case ControlStep.RESUME:
                    return await self._suspend_or_resume(event, where, suspend=False)
        except RunUnknownError:
            # Purged in between: looked at again, it is unknown.
            return Retry("run_gone", _GRACE_POLL_S)

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
        await _until_published(lambda: self._answers.control_refused(event, reason))
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
            except (SchedulerAwayError, SchedulerFaultError, PublishError) as error:
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

    # -- decisions and raised events -------------------------------------------------------------------

    async def _raise(
        self, event: Event[ApprovalDecided] | Event[EventRaised], record: KafkaRecord, waited_s: float
    ) -> Outcome:
        run_id = event.data.run_id
        size = len(canonical_json(event.data.data))
        if size > self._max_input_bytes:
            return DeadLetter(
                "data_too_large",
                f"data.data: has {size} bytes as JSON, at most {self._max_input_bytes} are taken: "
                "make it smaller, or raise TOWLINE_BRIDGE_MAX_INPUT_BYTES",
            )
        command = raised_command(event)
        try:
            if self._policy is not None and (why := await self._forbidden(event, self._policy)) is not None:
                return Deferred(self._refuse_decision(event, "not_authorized", why))
            await self._scheduler.raise_event(run_id, DECISION_EVENT, command.model_dump(mode="json"))
        except RunUnknownError:
            if waited_s < self._settings.unknown_run_grace_s:
                return Retry("unknown_run", _GRACE_POLL_S)
            return Deferred(self._refuse_decision(event, "unknown_run"))
        except SchedulerRefusedError as error:
            return DeadLetter("refused_by_scheduler", f"the scheduler refused to raise it: {error}")
        return Deferred(self._see_decision_through(event, record))

    async def _forbidden(
        self, event: Event[ApprovalDecided] | Event[EventRaised], policy: ApprovalPolicy
    ) -> str | None:
        """Why the policy refuses it.

        Raises:
            RunUnknownError: There is no such run. A run's child is none: by its id rules for its run would be
                got round.
        """
        state = await self._scheduler.find(event.data.run_id)
        if state is None or state.envelope is None or state.envelope.role != "run":
            raise RunUnknownError
        return policy.refuses(event, run_type=state.envelope.run_type, run_created_at=state.created_at)

    async def _see_decision_through(
        self, event: Event[ApprovalDecided] | Event[EventRaised], record: KafkaRecord
    ) -> None:
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
            await _until_published(lambda: self._answers.again(record))
            return
        if not seen:
            await self._refuse_decision(event, "run_finished")

    async def _refuse_decision(
        self,
        event: Event[ApprovalDecided] | Event[EventRaised],
        reason: ApprovalRefusal,
        message: str | None = None,
    ) -> None:
        # Not judged anew when Kafka's acknowledgement is lost: it may hold this answer already.
        await _until_published(lambda: self._answers.approval_refused(event, reason, message))
        logger.info(
            "decision_refused",
            extra={"run_id": event.data.run_id, "reason": reason, "why": message, "source": event.source},
        )


async def _fetched(record: KafkaRecord, payloads: PayloadStore) -> Command:
    """The event of a record whose data is in `payloads`, or why there is none."""
    try:
        return await decode_resolved(payloads, key=record.key, value=record.value, headers=record.headers)
    except DecodeError as error:
        return error


def _store_away(error: PayloadStoreAwayError) -> Retry:
    logger.warning("payload_store_away", extra={"error": str(error)})
    return Retry("payload_store_away")


def _run_of(event: Event) -> RunRef:
    data = event.data
    run_id = getattr(data, "run_id", None) or event.id
    if isinstance(data, RunRequested):
        return RunRef(run_id, data.run_type, data.session_id)
    return RunRef(run_id)


def _below(event: Event) -> Context:
    """The context of the event's trace, with this process's baggage."""
    named = trace.get_current_span(context_of(event))
    return trace.set_span_in_context(named, get_current())


async def _until_published(publish: Callable[[], Awaitable[None]]) -> None:
    """Say it until Kafka has it.

    A publication under way when this is cancelled is not given up: whoever gets the command next must find
    the answer on Kafka, or it must never come.
    """
    backoff, failures = Backoff(first_s=0.2, longest_s=10.0), 0
    while True:
        publishing = asyncio.ensure_future(publish())
        try:
            return await asyncio.shield(publishing)
        except asyncio.CancelledError:
            await asyncio.wait({publishing})
            raise
        except PublishError:
            failures += 1
            await asyncio.sleep(backoff.delay_s(failures))


def _json(text: str | None) -> Any:
    try:
        return json.loads(text or "null")
    except ValueError:
        return None
