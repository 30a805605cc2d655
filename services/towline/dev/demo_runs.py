"""The demo's runs: published, answered, awaited, shown."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Protocol, cast
from uuid import uuid4

from towline.contracts.client import Run, TowlineClient
from towline.contracts.errors import ResultTimeoutError
from towline.contracts.events import ApprovalRequested, Event, RunCancelled, RunCompleted, RunOutcome
from towline.contracts.settings import KafkaSettings

WORDS_SHOWN: Final = 60


class Decision(Protocol):
    """A reviewer's answer, as `examples.demo` defines it."""

    @property
    def approved(self) -> bool:
        """Whether it may go on."""
        ...

    @property
    def feedback(self) -> str | None:
        """Text for the run."""
        ...


class Demo(Protocol):
    """One run, as `examples.demo` defines it."""

    @property
    def pattern(self) -> str:
        """What it shows."""
        ...

    @property
    def run_type(self) -> str:
        """What to start."""
        ...

    @property
    def input(self) -> Any:
        """The run's input."""
        ...

    @property
    def decisions(self) -> Sequence[Decision]:
        """Answers to the run's questions, in order."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What became of one run."""

    pattern: str
    run_id: str
    outcome: str
    output: str
    milliseconds: int

    @property
    def completed(self) -> bool:
        """Whether it did what it should."""
        return self.outcome == "completed"


async def run_demos(kafka: KafkaSettings, demos: Sequence[Demo], *, timeout_s: float) -> list[Row]:
    """Run all, side by side: publish to `runs`, answer what is asked, read `results`."""
    async with TowlineClient(kafka, source="towline/demo") as client:
        return await asyncio.gather(*(_run_one(client, demo, timeout_s) for demo in demos))


async def _run_one(client: TowlineClient, demo: Demo, timeout_s: float) -> Row:
    began = time.monotonic()
    run_id = f"{demo.pattern}-{uuid4().hex[:8]}"
    run = await client.start(demo.run_type, demo.input, run_id=run_id, tags={"demo": demo.pattern})
    reviewing = asyncio.create_task(_review(run, demo.decisions)) if demo.decisions else None
    try:
        outcome, output = describe(await run.outcome(timeout_s))
    except ResultTimeoutError as error:
        outcome, output = "none", str(error)
    finally:
        if reviewing is not None:
            reviewing.cancel()
            with suppress(asyncio.CancelledError):
                await reviewing
    return Row(
        pattern=demo.pattern,
        run_id=run_id,
        outcome=outcome,
        output=output,
        milliseconds=round((time.monotonic() - began) * 1000),
    )


async def _review(run: Run, decisions: Sequence[Decision]) -> None:
    left = list(decisions)
    async for event in run.events():
        if isinstance(event.data, ApprovalRequested) and left:
            decision = left.pop(0)
            decide = run.approve if decision.approved else run.reject
            await decide(event.data.approval_id, feedback=decision.feedback, approver="demo")


def describe(event: Event[RunOutcome]) -> tuple[str, str]:
    """Outcome and first words of an outcome event."""
    data = event.data
    if isinstance(data, RunCompleted):
        return "completed", first_words(data.output)
    if isinstance(data, RunCancelled):
        return "cancelled", first_words(data.reason or "")
    return event.type.split(".")[-2], first_words(f"{data.error.type}: {data.error.message}")


def first_words(output: Any) -> str:
    """The beginning of an output, on one line. The text of an agent's answer comes out of its frame."""
    if isinstance(output, dict) and "text" in output:
        output = cast("dict[str, Any]", output)["text"]
    text = output if isinstance(output, str) else json.dumps(output, ensure_ascii=False)
    text = " ".join(text.split())
    return text if len(text) <= WORDS_SHOWN else f"{text[: WORDS_SHOWN - 1].rstrip()}…"


def print_table(rows: Sequence[Row]) -> None:
    """One row a pattern."""
    from rich.console import Console as RichConsole
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("pattern", "run_id", "outcome"):
        table.add_column(name, no_wrap=True)
    table.add_column("output")
    table.add_column("ms", justify="right", no_wrap=True)
    for row in rows:
        outcome = Text(row.outcome, style="green" if row.completed else "red")
        table.add_row(row.pattern, Text(row.run_id), outcome, Text(row.output), str(row.milliseconds))
    # A pipe has no width: give the rows all the room they need, one line each.
    RichConsole(width=None if sys.stdout.isatty() else 160).print(table)
