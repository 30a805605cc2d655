"""Commands and decisions as they come: read, in a span of the sender's trace, each to what carries it out."""

from __future__ import annotations

import logging
import time
from collections.abc import Hashable
from typing import TYPE_CHECKING, Final, TypeAlias, cast

from opentelemetry import trace
from opentelemetry.context import Context, get_current
from opentelemetry.trace import SpanKind, Status, StatusCode

from towline.bridge import metrics
from towline.bridge.answers import Answers
from towline.bridge.availability import Availability
from towline.bridge.catalog import Catalog
from towline.bridge.control import Control
from towline.bridge.core import Decision, answer_ids, rejection_of
from towline.bridge.decisions import Decisions
from towline.bridge.errors import AnswersUnreadableError, SchedulerAwayError
from towline.bridge.recall import Recall
from towline.bridge.requests import Requests
from towline.bridge.scheduler import Scheduler
from towline.bridge.settings import BridgeSettings
from towline.bridge.watches import Watches
from towline.contracts.cloudevents import decode
from towline.contracts.errors import (
    DataElsewhereError,
    DecodeError,
    PayloadStoreAwayError,
    PublishError,
)
from towline.contracts.events import (
    ApprovalDecided,
    Event,
    EventRaised,
    RunControl,
    RunRequested,
)
from towline.contracts.payloads import PayloadStore, decode_resolved
from towline.contracts.tracing import context_of, process_attributes, tracing_is_on
from towline.delivery import DONE, DeadLetter, Delivery, KafkaRecord, Outcome, Retry
from towline.telemetry import conventions
from towline.telemetry.propagation import in_trace
from towline.telemetry.runs import RunRef, in_run

if TYPE_CHECKING:
    from towline.bridge.approvers import ApprovalPolicy

logger = logging.getLogger(__name__)
tracer = trace.get_tracer("towline.bridge")

Command: TypeAlias = Event | DecodeError
_INPUT_BYTES: Final = 1_000_000
_LARGE_BYTES: Final = 16_384
"""From this size on a request is judged in a thread: 100,000 items against a schema take seconds."""
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
        self._payloads = payloads
        store_bytes = None if payloads is None else max(1, payloads.max_bytes - _ENVELOPE_BYTES)
        max_input_bytes = settings.max_input_bytes or store_bytes or _INPUT_BYTES
        self._availability = availability
        self._answers = answers
        self._recall = recall
        self._requests = Requests(
            scheduler=scheduler,
            catalog=catalog,
            answers=answers,
            run_type_grace_s=settings.run_type_grace_s,
            max_input_bytes=max_input_bytes,
        )
        self._control = Control(
            scheduler=scheduler,
            availability=availability,
            answers=answers,
            unknown_run_grace_s=settings.unknown_run_grace_s,
            cancel_grace_s=settings.cancel_grace_s,
        )
        self._decisions = Decisions(
            scheduler=scheduler,
            watches=watches,
            answers=answers,
            unknown_run_grace_s=settings.unknown_run_grace_s,
            max_data_bytes=max_input_bytes,
            policy=policy,
        )

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
        published = await self._recall.published(
            since_ms=delivery.record.timestamp, after=delivery.assigned_at
        )
        if isinstance(event.data, RunRequested):
            # An earlier request of the same run_id may have been rejected; this one is another.
            return rejection_of(answers[0], event.id) in published
        return any(answer in published for answer in answers)

    async def _dispatch(self, event: Event, delivery: Delivery[Command]) -> Outcome:
        # While the scheduler was away nothing could be learned of the run, nor its request be carried out.
        waited_s = time.monotonic() - max(delivery.received_at, self._availability.since)
        match event.data:
            case RunRequested():
                # Without a value: its data was fetched, because it is large.
                size = len(delivery.record.value or b"") or _LARGE_BYTES
                return await self._requests.carry_out(
                    cast("Event[RunRequested]", event), waited_s, is_large=size >= _LARGE_BYTES
                )
            case RunControl():
                return await self._control.carry_out(cast("Event[RunControl]", event), waited_s)
            case ApprovalDecided() | EventRaised():
                return await self._decisions.carry_out(cast("Decision", event), delivery.record, waited_s)
            case _:
                return DeadLetter(
                    "wrong_topic",
                    f"ce_type: {event.type} belongs on the topic {event.data.topic}; this one takes commands",
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
