"""Follows one run on a terminal: from the relay (with tokens) or from Kafka (events only)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from datetime import datetime
from typing import Any, Final

from towline.cli.errors import CliError
from towline.cli.output import Printer, hint, json_line
from towline.cli.sse import Message
from towline.cli.stream_view import StreamView
from towline.cli.topics import read
from towline.contracts.events import OUTCOME_MODELS, Event, RunCompleted
from towline.contracts.settings import KafkaSettings

UNKNOWN_RUN_GRACE_S: Final = 30.0
"""How long a run without any event is waited for, as the relay does by default."""


async def follow(run_id: str, settings: KafkaSettings, printer: Printer) -> int:
    """Print what the run does until it ends. The exit status: 0 if it completed, else 1.

    Raises:
        CliError: The run is not known, or its stream cannot be read.
    """
    from towline.cli import relay  # httpx is a quarter of the start of commands that need none

    url = await relay.find()
    if url is not None:
        return await _from_relay(
            relay.stream(url, run_id),
            lambda: relay.get_json(url, f"/runs/{run_id}"),
            StreamView(run_id),
            printer,
        )
    hint("no relay: showing events from Kafka, without tokens (set TOWLINE_RELAY_URL for those)")
    return await _from_kafka(run_id, settings, printer)


async def _from_relay(
    messages: AsyncIterator[Message],
    look_up: Callable[[], Awaitable[Any]],
    view: StreamView,
    printer: Printer,
) -> int:
    status = 1
    try:
        async for message in messages:
            data: Any = json.loads(message.data)
            if printer.as_json:
                printer.line(json_line({"event": message.event, "id": message.id, "data": data}))
            else:
                printer.raw(view.text(message.event, data))
            if message.event == "end":
                status = 0 if data.get("outcome") == "completed" else 1
                if status and not printer.as_json:
                    # The stream's end carries an output only; why there is none is in the run.
                    printer.raw(view.why(await look_up()))
    finally:
        if not printer.as_json:
            printer.raw(view.end())
    return status


async def _from_kafka(run_id: str, settings: KafkaSettings, printer: Printer) -> int:
    topics = settings.topics
    # The run's own time begins once all that is retained has been read, which may take longer than that.
    grace = asyncio.timeout(None)
    events = read(
        settings,
        (topics.events, topics.results),
        last=None,
        follow=True,
        run_id=run_id,
        on_caught_up=lambda: grace.reschedule(asyncio.get_running_loop().time() + UNKNOWN_RUN_GRACE_S),
    )
    try:
        event, recorded = await _first(events, run_id, grace)
        while True:
            printer.event(event, recorded)
            if isinstance(event.data, OUTCOME_MODELS):
                return 0 if isinstance(event.data, RunCompleted) else 1
            event, recorded = await anext(events)
    finally:
        await events.aclose()


async def _first(
    events: AsyncGenerator[tuple[Event, datetime]], run_id: str, grace: asyncio.Timeout
) -> tuple[Event, datetime]:
    try:
        async with grace:
            return await anext(events)
    except TimeoutError:
        raise CliError(
            f"run {run_id} has no event after {UNKNOWN_RUN_GRACE_S:g} s: check the id, and that a bridge "
            "and a worker run"
        ) from None
