"""Commands that read: one run, outcomes, events, the list of runs."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias, cast

import typer

from towline.cli import inputs
from towline.cli.commands import Json, RunIdArgument
from towline.cli.errors import CliError
from towline.cli.following import follow as follow_run
from towline.cli.output import Printer, clock, json_line, printable
from towline.cli.run import execute
from towline.cli.topics import read
from towline.contracts.events import TopicName
from towline.contracts.settings import KafkaSettings

if TYPE_CHECKING:
    from rich.table import Table

Follow: TypeAlias = Annotated[bool, typer.Option("--follow", "-f", help="Go on with new ones until Ctrl-C.")]
Last: TypeAlias = Annotated[int, typer.Option("--last", "-n", min=0, help="How many of those there are.")]
All: TypeAlias = Annotated[bool, typer.Option("--all", help="All that are retained.")]


def tail(run_id: RunIdArgument, as_json: Json = False) -> None:
    """Show a run from its start until it ends: tokens and events. Exits 0 only if it completed."""

    async def work() -> int:
        return await follow_run(inputs.run_id(run_id), KafkaSettings(), Printer(as_json=as_json))

    execute(work())


def results(follow: Follow = False, last: Last = 20, all_: All = False, as_json: Json = False) -> None:
    """Outcomes of runs, from Kafka."""
    execute(_topic("results", last=None if all_ else last, follow=follow, as_json=as_json))


def events(follow: Follow = False, last: Last = 20, all_: All = False, as_json: Json = False) -> None:
    """Lifecycle events, approval requests and answers, from Kafka."""
    execute(_topic("events", last=None if all_ else last, follow=follow, as_json=as_json))


async def _topic(name: TopicName, *, last: int | None, follow: bool, as_json: bool) -> None:
    settings, printer = KafkaSettings(), Printer(as_json=as_json)
    async for event, recorded in read(settings, (settings.topics.name(name),), last=last, follow=follow):
        printer.event(event, recorded)


def runs(
    status: Annotated[str | None, typer.Option(help="Only those in this status.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=200, help="At most so many.")] = 50,
    as_json: Json = False,
) -> None:
    """The latest runs, from the relay."""
    execute(_runs(status, limit, as_json=as_json))


async def _runs(status: str | None, limit: int, *, as_json: bool) -> None:
    from rich.console import Console

    from towline.cli import relay  # as in `towline.cli.following`

    url = await relay.find()
    if url is None:
        if relay.configured_url() is not None:
            raise CliError("runs come from the relay, and TOWLINE_RELAY_URL is none: set it to where one is")
        raise CliError(
            f"no relay answers at {relay.DEFAULT_URL}: start one (towline dev does), "
            "or set TOWLINE_RELAY_URL to where it is"
        )
    params: dict[str, str | int] = {"limit": limit} | ({"status": status} if status else {})
    found = await _listed(url, "runs", params)
    if as_json:
        for run in found:
            Printer.line(json_line(run))
        return
    asks: dict[str, list[str]] = {}
    for ask in await _listed(url, "approvals", {"limit": 200}):
        asks.setdefault(str(ask.get("run_id")), []).append(str(ask.get("approval_id")))
    # A pipe has no width: one line a run.
    Console(width=None if sys.stdout.isatty() else 200).print(table(found, asks))


async def _listed(url: str, name: str, params: Mapping[str, str | int]) -> list[dict[str, Any]]:
    from towline.cli import relay

    answer = await relay.get_json(url, f"/{name}", params=params)
    if not isinstance(answer, dict) or name not in answer:
        raise CliError(f"what answers at {url} is no relay: set TOWLINE_RELAY_URL to where one is")
    return cast("list[dict[str, Any]]", answer[name])


def table(found: list[dict[str, Any]], asks: Mapping[str, list[str]]) -> Table:
    """Runs as the relay lists them, and by run what it asks for; ids are whole at any width."""
    from rich.table import Table
    from rich.text import Text

    shown = Table("updated", box=None, header_style="bold", pad_edge=False)
    shown.add_column("run_id", no_wrap=True, overflow="fold")
    for name in ("run_type", "status", "asks for"):
        shown.add_column(name, overflow="fold")  # by what an ask is named here it is approved
    for run in found:
        run_id = str(run.get("run_id"))
        updated = datetime.fromtimestamp(run.get("updated_ms", 0) / 1000, UTC)
        cells = (run_id, run.get("run_type") or "", run.get("status") or "", ", ".join(asks.get(run_id, [])))
        shown.add_row(clock(updated), *(Text(printable(str(cell))) for cell in cells))
    return shown
