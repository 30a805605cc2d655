"""Waits for the one answer to a command: the event whose id ends in the command's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final

from towline.cli.connection import reader
from towline.cli.output import printable
from towline.contracts.consumers import assign, end_offsets, partitions_of, poll, resolved
from towline.contracts.errors import DecodeError
from towline.contracts.events import (
    ApprovalRefused,
    ApprovalResolved,
    ControlRefused,
    Event,
    RunCancelled,
    RunCompleted,
    RunFailed,
    RunProgressed,
    RunRejected,
)
from towline.contracts.ids import outcome_id
from towline.contracts.settings import KafkaSettings

_POLL_S: Final = 0.1

Wait = Callable[[str, float], Awaitable[Event | None]]


@asynccontextmanager
async def listening(settings: KafkaSettings, run_id: str, *, ends_run: bool = False) -> AsyncGenerator[Wait]:
    """Listen from now on; enter it before the command is published.

    Yields:
        ``wait(event_id, timeout_s)``: the answer to that command, or None if none came in time.

    Args:
        settings: Where Kafka is.
        run_id: The commanded run.
        ends_run: The run's outcome is an answer too (cancel).

    Raises:
        KafkaUnavailableError: No broker answers.
    """
    topics = (settings.topics.events, settings.topics.results)
    async with reader(settings) as (events, payloads):
        assign(events, await end_offsets(events, await partitions_of(events, topics)))

        async def wait(event_id: str, timeout_s: float) -> Event | None:
            try:
                async with asyncio.timeout(timeout_s):
                    while True:
                        for record in await poll(events, timeout_s=_POLL_S):
                            if record.key != run_id.encode():
                                continue
                            try:
                                event = await resolved(record, payloads)
                            except DecodeError:
                                continue  # its data is not to be had; the log says why
                            if event is not None and _is_answer(event, run_id, event_id, ends_run):
                                return event
            except TimeoutError:
                return None

        yield wait


def _is_answer(event: Event, run_id: str, event_id: str, ends_run: bool) -> bool:
    return event.id.endswith(f"/{event_id}") or (ends_run and event.id == outcome_id(run_id))


def verdict(answer: Event) -> tuple[str, bool]:
    """The answer in a few words, and whether the command did what it was for."""
    data = answer.data
    if isinstance(data, ApprovalResolved):
        return data.outcome, True
    if isinstance(data, ApprovalRefused):
        return f"refused: {data.reason}{f' ({printable(data.message)})' if data.message else ''}", False
    if isinstance(data, ControlRefused):
        return f"refused: {data.reason}", False
    if isinstance(data, RunCancelled):
        return "cancelled", True
    if isinstance(data, (RunCompleted, RunFailed, RunRejected)):
        return f"too late: the run {answer.type.split('.')[-2]}", False
    if isinstance(data, RunProgressed):
        return "done", True
    return answer.type, True
