"""Sends what turns have to say, between their code and the report of it; beginnings a moment later.

While Kafka is away a turn waits here; it is never failed for it. It gives up only when the scheduler has
delivered the same turn again (that delivery says the same), or when the host stops.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import CancelledError as FutureCancelledError
from concurrent.futures import Future
from typing import Any, Final, Protocol

from towline.contracts.errors import EncodeError, TowlineError
from towline.contracts.events import (
    ApprovalRequested,
    ApprovalResolved,
    ErrorInfo,
    Event,
    RunCancelled,
    RunCompleted,
    RunFailed,
    RunProgressed,
    RunStarted,
)
from towline.telemetry import metrics
from towline.worker.beginnings import Beginnings
from towline.worker.errors import TurnAbandonedError
from towline.worker.halves import mended
from towline.worker.turn import Publish, RaiseOn, Turn

_log = logging.getLogger(__name__)

_failures = metrics.counter("towline.worker.publish_failures")
_BACKOFF_S: Final = (0.1, 0.3, 1.0, 3.0, 5.0)
_TEXT_CHARS_MAX: Final = 10_000
"""What is left of a text that makes its event too large."""
_TOO_LARGE: Final = "OutputTooLargeError"

RaiseEvent = Callable[[RaiseOn], None]
"""Raises an event on another instance, over the connection that delivered the turn."""


class Publisher(Protocol):
    """What publishes events: `towline.contracts.producer.EventProducer`."""

    def send_many(self, events: Sequence[Event]) -> Awaitable[None]:
        """Publish in order and wait for the acknowledgements."""
        ...


class Outlet:
    """Used from the threads that carry turns out; publishes on the host's event loop.

    Args:
        publisher: Where events go.
        loop: The loop that `publisher` belongs to.
    """

    def __init__(self, publisher: Publisher, loop: asyncio.AbstractEventLoop) -> None:
        self._publisher = publisher
        self._loop = loop
        self._lock = threading.Lock()
        self._waiting: dict[str, Future[None] | asyncio.Future[None]] = {}
        self._closed = False
        self._stuck_since_attempt = 0
        self._beginnings = Beginnings(self._publish_all)

    @property
    def waiting_count(self) -> int:
        """Turns that wait for Kafka just now."""
        return len(self._waiting)

    @property
    def is_stuck(self) -> bool:
        """Whether sending has been failing."""
        return self._stuck_since_attempt > 0

    def replace(self, instance_id: str) -> None:
        """A turn of this instance was delivered (again): one that still waits gives up."""
        with self._lock:
            waiting = self._waiting.pop(instance_id, None)
        if waiting is not None:
            _log.info("turn_replaced", extra={"instance_id": instance_id})
            waiting.cancel()

    def close(self) -> None:
        """Make all turns that wait give up; their completion is then not reported."""
        with self._lock:
            self._closed = True
            waiting = list(self._waiting.values())
        for future in waiting:
            future.cancel()
        self._beginnings.close()

    async def flush(self) -> None:
        """Send what is put off; returns when Kafka has it or the outlet is closed."""
        if not self._closed:
            await self._beginnings.flush()

    def knows_beginning(self, instance_id: str) -> bool:
        """Whether it is told from here that the run has started."""
        return self._beginnings.is_known(instance_id)

    def put_off(self, turn: Turn) -> bool:
        """Say a moment later all that `turn` says, if it says no more than that its run has started.

        Only for a turn that is followed by another. Not while Kafka is slow or away: then turns wait, and
        the worker takes no more of them.
        """
        match turn.outbox:
            case [Publish(event)] if isinstance(event.data, RunStarted):
                if self._closed or self.is_stuck or not self._beginnings.has_room:
                    return False
                self._beginnings.put_off(turn.instance_id, event)
                return True
            case _:
                return False

    def send(self, turn: Turn, raise_event: RaiseEvent) -> None:
        """Send all that `turn` says, in order. Blocks until it is done.

        Raises:
            TurnAbandonedError: The turn is not wanted any more: report nothing for it.
        """
        events: list[Event] = []
        for said in turn.outbox:
            match said:
                case Publish(event):
                    events.append(event)
                case RaiseOn():
                    self._publish(turn.instance_id, events)
                    events = []
                    raise_event(said)
        self._publish(turn.instance_id, events)

    async def deliver(self, turn: Turn, raise_event: Callable[[RaiseOn], Awaitable[None]]) -> None:
        """Send all that `turn` says, in order; `send` for a caller on the publisher's own loop.

        Raises:
            TurnAbandonedError: The turn is not wanted any more: report nothing for it.
        """
        events: list[Event] = []
        for said in turn.outbox:
            match said:
                case Publish(event):
                    events.append(event)
                case RaiseOn():
                    await self._deliver(turn.instance_id, events)
                    events = []
                    await raise_event(said)
        await self._deliver(turn.instance_id, events)

    async def _deliver(self, instance_id: str, events: list[Event]) -> None:
        if not events and not self._beginnings.is_open(instance_id):
            return
        if self._closed:
            raise TurnAbandonedError(f"{instance_id}: the host is stopping")
        sending = asyncio.ensure_future(self._publish_with_beginning(instance_id, events))
        self._waiting[instance_id] = sending
        try:
            await sending
        except asyncio.CancelledError as cancelled:
            if not sending.cancelled():
                sending.cancel()
                raise
            raise TurnAbandonedError(f"{instance_id}: replaced or stopped while publishing") from cancelled
        finally:
            if self._waiting.get(instance_id) is sending:
                del self._waiting[instance_id]

    async def _publish_with_beginning(self, instance_id: str, events: list[Event]) -> None:
        events = [*await self._beginnings.claim(instance_id), *events]
        try:
            await self._publish_all(events)
        except BaseException:
            self._beginnings.release(instance_id)
            raise
        if any(isinstance(event.data, RunStarted) for event in events):
            self._beginnings.told(instance_id)

    def _publish(self, instance_id: str, events: list[Event]) -> None:
        if not events:
            return
        with self._lock:
            if self._closed:
                raise TurnAbandonedError(f"{instance_id}: the host is stopping")
            publishing = self._publish_with_beginning(instance_id, events)
            future = asyncio.run_coroutine_threadsafe(publishing, self._loop)
            self._waiting[instance_id] = future
        try:
            future.result()
        except (asyncio.CancelledError, FutureCancelledError) as cancelled:
            raise TurnAbandonedError(f"{instance_id}: replaced or stopped while publishing") from cancelled
        finally:
            with self._lock:
                if self._waiting.get(instance_id) is future:
                    del self._waiting[instance_id]

    async def _publish_all(self, events: Sequence[Event]) -> None:
        """Publish, however long it takes. The outcome goes last, when all that precedes it is there."""
        for batch in _batches(events):
            waiting, attempt = list(batch), 0
            while waiting:
                try:
                    await self._publisher.send_many(waiting)
                except EncodeError as error:
                    waiting = await self._publish_singly(waiting, error)
                except TowlineError as error:
                    self._stuck_since_attempt += 1
                    _failures.add(1)
                    _log.warning("publish_failed", extra={"event_id": waiting[0].id, "error": str(error)})
                    await asyncio.sleep(_BACKOFF_S[min(attempt, len(_BACKOFF_S) - 1)])
                    attempt += 1
                else:
                    self._stuck_since_attempt = 0
                    waiting = []

    async def _publish_singly(self, events: list[Event], error: EncodeError) -> list[Event]:
        """One of `events` can't be written: put something that can in its place."""
        if len(events) > 1:
            for event in events:
                await self._publish_all((event,))
            return []
        replaced = printable(events[0], str(error))
        _log.warning(
            "event_replaced" if replaced is not None else "event_not_writable",
            extra={"event_id": events[0].id, "error": str(error)},
        )
        return [] if replaced is None else [replaced]


def _batches(events: Sequence[Event]) -> list[Sequence[Event]]:
    outcomes = [event for event in events if event.data.topic == "results"]
    others = [event for event in events if event.data.topic != "results"]
    if all(isinstance(event.data, RunStarted) for event in others):
        # Of nothing that a reader of the outcome would miss.
        return [[*others, *outcomes]]
    return [batch for batch in (others, outcomes) if batch]


def printable(event: Event, reason: str) -> Event | None:
    """What is published in place of an event that Kafka does not take; None if there is nothing to say.

    An output that is too large fails the run: its consumers must learn that it ended, and why.
    """
    data = event.data
    dumped = data.model_dump()
    replacement: Any = None
    if (whole := mended(dumped)) != dumped:
        replacement = type(data).model_validate(whole)
    elif isinstance(data, RunCompleted):
        replacement = RunFailed(
            run_id=data.run_id,
            run_type=data.run_type,
            error=ErrorInfo(
                type=_TOO_LARGE, message=f"the run returned, but its output can't be published: {reason}"
            ),
            started_at=data.started_at,
            finished_at=data.finished_at,
        )
    elif isinstance(data, RunFailed) and (
        data.error.details is not None or len(data.error.message) > _TEXT_CHARS_MAX
    ):
        shorter = {"details": None, "message": data.error.message[:_TEXT_CHARS_MAX]}
        replacement = data.model_copy(update={"error": data.error.model_copy(update=shorter)})
    elif isinstance(data, RunCancelled) and len(data.reason or "") > _TEXT_CHARS_MAX:
        replacement = data.model_copy(update={"reason": (data.reason or "")[:_TEXT_CHARS_MAX]})
    elif isinstance(data, ApprovalResolved) and len(data.feedback or "") > _TEXT_CHARS_MAX:
        replacement = data.model_copy(update={"feedback": (data.feedback or "")[:_TEXT_CHARS_MAX]})
    elif isinstance(data, RunProgressed) and data.status != {"too_large": True}:
        replacement = data.model_copy(update={"status": {"too_large": True}})
    elif isinstance(data, ApprovalRequested) and data.details is not None:
        replacement = data.model_copy(update={"details": None})
    elif isinstance(data, ApprovalRequested) and len(data.title or "") > _TEXT_CHARS_MAX:
        replacement = data.model_copy(update={"title": (data.title or "")[:_TEXT_CHARS_MAX]})
    if replacement is None:
        return None
    return Event(
        id=event.id,
        source=event.source,
        data=replacement,
        subject=event.subject,
        traceparent=event.traceparent,
        tracestate=event.tracestate,
    )
