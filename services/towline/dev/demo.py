"""``towline demo``: every example through real Kafka, then nothing is left running."""

from __future__ import annotations

import asyncio
import importlib
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Final, cast

import typer

from towline.contracts.errors import TowlineError
from towline.dev.command import given_addresses
from towline.dev.console import Console, LogLines, readable
from towline.dev.demo_runs import Demo, Row, print_table, run_demos
from towline.dev.errors import DevError
from towline.dev.process import LineSink, start_time
from towline.dev.stack import Stack, StackPlan
from towline.dev.supervisor import Supervisor
from towline.dev.workspace import Workspace, open_workspace

app = typer.Typer(help="All seven examples through real Kafka, then stop.", pretty_exceptions_enable=False)

EXAMPLES: Final = "examples.demo"
LOG_LINES_SHOWN: Final = 60
"""Of the merged log, when something went wrong."""


@app.command()
def demo(
    timeout_s: Annotated[float, typer.Option("--timeout", help="Longest wait for an outcome.")] = 120.0,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show the parts' log.")] = False,
) -> None:
    """Start a stack on a temporary folder, run the seven examples, print their results, stop."""
    console = Console(quiet=not verbose)

    def tell(text: str) -> None:
        # The first time this takes a while: say why. The rest is the log's.
        if text.startswith("kafka."):
            console.say(text)
        else:
            console.line("dev", text)

    LogLines(tell).install()
    try:
        app_path, demos = load_examples()
        with open_workspace(None) as workspace:
            rows = _show(workspace, console, app_path, demos, timeout_s=timeout_s)
        status = 0 if rows and all(row.completed for row in rows) else 1
    except (DevError, TowlineError, OSError) as error:
        sys.stderr.write(f"towline demo: {error}\n")
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # as in `towline dev`


def load_examples() -> tuple[str, Sequence[Demo]]:
    """The app of the examples, and what to run.

    Raises:
        DevError: The examples are not here.
    """
    sys.path.insert(0, str(Path.cwd()))
    try:
        module: Any = importlib.import_module(EXAMPLES)
    except ModuleNotFoundError as error:
        if error.name not in {"examples", EXAMPLES}:
            raise
        raise DevError("the examples are not here: run it in a clone of the repository") from None
    return module.APP, cast("Sequence[Demo]", module.DEMO)


def _show(
    workspace: Workspace, console: Console, app_path: str, demos: Sequence[Demo], *, timeout_s: float
) -> list[Row]:
    began = time.monotonic()
    log: deque[str] = deque(maxlen=LOG_LINES_SHOWN)
    started: set[int] = set()

    def line(name: str, text: str) -> None:
        log.append(f"{name:<9} | {readable(text)}")
        console.line(name, text)

    plan = StackPlan(
        data=workspace.path,
        app=app_path,
        given=given_addresses(os.environ),
    )
    stack = Stack(plan, sink=line)
    console.say(f"Starting {', '.join(part.name for part in stack.parts)} …")

    def ready() -> None:
        started.update(part.pid for part in stack.parts)
        console.say(f"Ready after {time.monotonic() - began:.1f} s. Publishing {len(demos)} requests …\n")

    rows: list[Row] = []
    try:
        rows = asyncio.run(_run_all(stack, demos, line, ready, timeout_s=timeout_s))
    finally:
        if not rows or not all(row.completed for row in rows):
            console.say("\n".join(["The last lines of the log:", *log]))
    print_table(rows)
    left = sorted(pid for pid in started if start_time(pid) is not None)
    if left:
        raise DevError(f"still running: {left}: please report this, and kill them")
    console.say(f"\nAll stopped, nothing left running. {time.monotonic() - began:.1f} s in all.")
    return rows


async def _run_all(
    stack: Stack, demos: Sequence[Demo], line: LineSink, ready: Callable[[], None], *, timeout_s: float
) -> list[Row]:
    is_ready = asyncio.Event()

    def on_ready() -> None:
        ready()
        is_ready.set()

    supervisor = Supervisor(stack, say=lambda text: line("dev", text), on_ready=on_ready)
    supervisor.stop_on_signals()
    up = asyncio.create_task(supervisor.run(), name="stack")
    waiting = asyncio.create_task(is_ready.wait(), name="ready")
    rows: list[Row] = []
    try:
        await asyncio.wait({up, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if is_ready.is_set():
            runs = asyncio.create_task(run_demos(stack.kafka, demos, timeout_s=timeout_s), name="runs")
            await asyncio.wait({up, runs}, return_when=asyncio.FIRST_COMPLETED)
            if runs.done():
                rows = await runs
            else:
                runs.cancel()
                with suppress(asyncio.CancelledError):
                    await runs
    finally:
        waiting.cancel()
        supervisor.stop()
        await up
    return rows
