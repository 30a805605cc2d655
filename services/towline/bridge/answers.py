"""The bridge's own events, under their deterministic ids."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Final

from pydantic import JsonValue

from towline.bridge import failpoints, metrics
from towline.bridge.core import REQUEST_ID, Decision
from towline.contracts import ids
from towline.contracts.cloudevents import Record
from towline.contracts.errors import EncodeError, PublishError
from towline.contracts.events import (
    ApprovalRefusal,
    ApprovalRefused,
    ControlRefusal,
    ControlRefused,
    ErrorInfo,
    Event,
    EventData,
    EventRaised,
    RunCancelled,
    RunControl,
    RunFailed,
    RunProgressed,
    RunRejected,
    RunRequested,
)
from towline.contracts.producer import EventProducer
from towline.delivery import Backoff, KafkaRecord
from towline.telemetry.propagation import inject

logger = logging.getLogger(__name__)

SOURCE: Final = "towline/bridge"
_KNOWN_MAX_COUNT: Final = 10_000
_CUT_LENGTH: Final = 2_000
"""Of a text in an outcome that would be too large with the whole of it. In characters."""


class Answers:
    """Publishes what the bridge has to say.

    Args:
        producer: Sends it.
        lapsed: Whether somebody else may have this bridge's partitions by now, and answers in its place.
        now: The time.

    Raises (all methods): `PublishError` when Kafka did not acknowledge, or may not be asked to; call again.
    """

    def __init__(
        self,
        producer: EventProducer,
        *,
        lapsed: Callable[[], bool],
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._producer = producer
        self._lapsed = lapsed
        self.now = now
        self._told: OrderedDict[str, None] = OrderedDict()
        self._given: OrderedDict[str, None] = OrderedDict()
        self._begun: OrderedDict[str, None] = OrderedDict()

    def has_told(self, run_id: str) -> bool:
        """Whether this process has published the run's outcome, as far as it remembers."""
        return run_id in self._told

    def has_given(self, event_id: str) -> bool:
        """Whether this process has published that answer to a command, as far as it remembers."""
        return event_id in self._given

    def may_have_given(self, event_id: str) -> bool:
        """Whether this process has tried to publish that answer: Kafka may have it, acknowledged or not."""
        return event_id in self._begun

    async def _say(
        self, event_id: str, data: EventData, cause: Event | None, *, shorter: EventData | None = None
    ) -> None:
        """Publish `data`; `shorter` if that is more than Kafka takes: it must be told all the same."""
        if self._lapsed():
            raise PublishError(
                "Kafka has not heard from this bridge for longer than a session: another may have judged it",
                event_id=event_id,
            )
        _remember(self._begun, event_id)
        try:
            await self._send(event_id, data, cause)
        except EncodeError as too_large:
            if shorter is None:
                raise
            logger.warning("answer_cut", extra={"event_id": event_id, "error": str(too_large)})
            data = shorter
            await self._send(event_id, data, cause)
        failpoints.hit("answer.published")
        reason = getattr(data, "reason", None) if data.topic == "events" else None
        error: ErrorInfo | None = getattr(data, "error", None)
        labels = {"type": data.event_type, "reason": error.type if error else reason or ""}
        metrics.answers.add(1, labels)
        if data.topic == "results":
            # A rejected run's type may be anything: only one that an app offers is a label.
            run_type = None if error and error.type == "unknown_run_type" else getattr(data, "run_type", None)
            outcome = data.event_type.split(".")[2]
            metrics.runs_ended.add(1, {"run_type": run_type or "unknown", "outcome": outcome})

    async def _send(self, event_id: str, data: EventData, cause: Event | None) -> None:
        traceparent, tracestate = inject()
        if traceparent is None and cause is not None:
            traceparent, tracestate = cause.traceparent, cause.tracestate
        await self._producer.send(
            Event(
                id=event_id,
                source=SOURCE,
                time=self.now(),
                data=data,
                traceparent=traceparent,
                tracestate=tracestate,
                extensions={REQUEST_ID: cause.id} if isinstance(data, RunRejected) and cause else {},
            )
        )

    async def again(self, record: KafkaRecord) -> None:
        """Publish a command anew, as it is, at the end of its topic."""
        await self._producer.send_record(
            record.topic,
            Record(record.key, record.value, tuple(record.headers)),
            name=f"{record.topic}/{record.partition}/{record.offset}",
        )

    async def rejected(self, event: Event[RunRequested], error: ErrorInfo) -> None:
        """The run is not started."""
        run_id = event.data.run_id or event.id
        data = RunRejected(run_id=run_id, run_type=event.data.run_type, error=error)
        shorter = data.model_copy(update={"error": _cut(error)})
        await self._say(ids.outcome_id(run_id), data, event, shorter=shorter)

    async def cancelled(
        self, run_id: str, run_type: str | None, reason: str | None, cause: Event | None
    ) -> None:
        """The run was ended by termination."""
        data = RunCancelled(run_id=run_id, run_type=run_type, reason=reason, finished_at=self.now())
        shorter = data.model_copy(update={"reason": reason and reason[:_CUT_LENGTH]})
        await self._say(ids.outcome_id(run_id), data, cause, shorter=shorter)
        _remember(self._told, run_id)

    async def failed(self, run_id: str, run_type: str, error: ErrorInfo, finished_at: datetime) -> None:
        """The scheduler itself failed the run."""
        data = RunFailed(run_id=run_id, run_type=run_type, error=error, finished_at=finished_at)
        shorter = data.model_copy(update={"error": _cut(error)})
        await self._say(ids.outcome_id(run_id), data, None, shorter=shorter)
        _remember(self._told, run_id)

    async def control_done(self, event: Event[RunControl], *, suspended: bool) -> None:
        """A suspend or resume took effect."""
        command = event.data
        reason = command.reason
        await self._give(
            ids.control_done_id(command.run_id, command.action, event.id),
            _progress(command, suspended, reason),
            event,
            shorter=_progress(command, suspended, reason and reason[:_CUT_LENGTH]),
        )

    async def control_refused(self, event: Event[RunControl], reason: ControlRefusal) -> None:
        """A control command changed nothing."""
        command = event.data
        data = ControlRefused(run_id=command.run_id, action=command.action, reason=reason)
        await self._give(ids.control_refused_id(command.run_id, command.action, event.id), data, event)

    async def approval_refused(
        self,
        event: Decision,
        reason: ApprovalRefusal,
        message: str | None = None,
    ) -> None:
        """A decision or raised event reached nobody."""
        data = event.data
        name = data.name if isinstance(data, EventRaised) else data.approval_id
        answer = ApprovalRefused(run_id=data.run_id, approval_id=name, reason=reason, message=message)
        await self._give(ids.approval_refused_id(data.run_id, name, event.id), answer, event)

    async def _give(
        self, event_id: str, answer: EventData, command: Event, *, shorter: EventData | None = None
    ) -> None:
        await self._say(event_id, answer, command, shorter=shorter)
        _remember(self._given, event_id)


def _progress(command: RunControl, suspended: bool, reason: str | None) -> RunProgressed:
    status: dict[str, JsonValue] = {"suspended": suspended, "reason": reason}
    return RunProgressed(run_id=command.run_id, status=status)


def _cut(error: ErrorInfo) -> ErrorInfo:
    return ErrorInfo(type=error.type[:_CUT_LENGTH], message=error.message[:_CUT_LENGTH])


def _remember(known: OrderedDict[str, None], name: str) -> None:
    known[name] = None
    if len(known) > _KNOWN_MAX_COUNT:
        known.popitem(last=False)


async def until_published(publish: Callable[[], Awaitable[None]]) -> None:
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
