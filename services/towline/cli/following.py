"""Follows one run on a terminal: from the relay (with tokens) or from Kafka (events only)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from datetime import datetime
from typing import Final

from towline.cli.errors import CliError
from towline.cli.output import Printer, hint
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
        return await relay.show(url, run_id, printer)
    hint("no relay: showing events from Kafka, without tokens (set TOWLINE_RELAY_URL for those)")
    return await _from_kafka(run_id, settings, printer)


async def _from_kafka(run_id: str, settings: KafkaSettings, printer: Printer) -> int:
    topics = settings.topics
    events = read(settings, (topics.events, topics.results), last=None, follow=True, run_id=run_id)
    try:
        event, recorded = await _first(events, run_id)
        while True:
            printer.event(event, recorded)
            if isinstance(event.data, OUTCOME_MODELS):
                return 0 if isinstance(event.data, RunCompleted) else 1
            event, recorded = await anext(events)
    finally:
        await events.aclose()


async def _first(events: AsyncGenerator[tuple[Event, datetime]], run_id: str) -> tuple[Event, datetime]:
    try:
        async with asyncio.timeout(UNKNOWN_RUN_GRACE_S):
            return await anext(events)
    except TimeoutError:
        raise CliError(
            f"run {run_id} has no event after {UNKNOWN_RUN_GRACE_S:g} s: check the id, and that a bridge "
            "and a worker run"
        ) from None
