"""`towline dead-letters`: list, show, replay, discard."""

from __future__ import annotations

import asyncio
import base64
import json
import sys
from collections.abc import Coroutine
from typing import Annotated, Any, Final, NoReturn, TypeVar

import typer
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from towline.contracts.errors import TowlineError
from towline.contracts.producer import EventProducer
from towline.contracts.settings import KafkaSettings
from towline.delivery.archive import mark, read_letters, replay
from towline.delivery.letters import FILTER_FIELDS, Letter, LetterError, Letters, LetterState, replay_record
from towline.telemetry import configure_logging

app = typer.Typer(
    help="What could not be trusted, with the reason: look, mend, replay.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

_T = TypeVar("_T")
_MAX_BYTES: Final = 8 * 1024 * 1024
_START_S: Final = 15.0
_ALL: Final[tuple[LetterState, ...]] = ("open", "replayed", "discarded")

Filters = Annotated[
    list[str] | None,
    typer.Option(
        "--filter", help=f"FIELD=PATTERN, repeatable; * and ? are wildcards. {', '.join(FILTER_FIELDS)}."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object a line.")]
Ids = Annotated[list[str] | None, typer.Argument(help="Ids as listed: TOPIC/PARTITION/OFFSET.")]


@app.callback()
def dead_letters() -> None:
    """What could not be trusted, with the reason: look, mend, replay."""
    configure_logging("towline-dead-letters", level="WARNING", json_lines=False)


@app.command("list")
def list_letters(
    filters: Filters = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Also those that were replayed or discarded.")
    ] = False,
    as_json: Json = False,
) -> None:
    """List dead letters, oldest first."""
    found = _select(_do(read_letters(KafkaSettings())), filters, _ALL if everything else ("open",))
    if as_json:
        for letter in found:
            _line(letter.summary())
        return
    if not found:
        typer.echo("no dead letters" if everything else "no open dead letters")
        return
    # The id is what the other commands are given: whole, however narrow the terminal.
    table = Table(Column("id", no_wrap=True, overflow="fold"), box=None, header_style="bold", pad_edge=False)
    for name in ("time", "reason", "type", "run", "error", *(["state"] if everything else [])):
        table.add_column(name, overflow="fold")
    for letter in found:
        row = letter.summary()
        cells = [row[name] for name in ("id", "time", "reason", "type", "run", "error")]
        # As text, never as markup: the content comes from anyone who can publish.
        table.add_row(
            *(Text(_printable(str(cell))) for cell in [*cells, *([row["state"]] if everything else [])])
        )
    Console().print(table)


@app.command()
def show(
    letter_id: Annotated[str, typer.Argument(metavar="ID", help="As listed: TOPIC/PARTITION/OFFSET.")],
    as_json: Json = False,
) -> None:
    """Show one dead letter whole: headers and value."""
    letter = _find(_do(read_letters(KafkaSettings())), letter_id)
    # Kafka knows headers without a value.
    headers = [
        [name, (value or b"").decode("utf-8", "backslashreplace")] for name, value in letter.record.headers
    ]
    if as_json:
        value = letter.record.value
        encoded = None if value is None else base64.b64encode(value).decode()
        _line({**letter.summary(), "headers": headers, "value_base64": encoded})
        return
    for name, text in letter.summary().items():
        if text not in (None, ""):
            typer.echo(f"{name:<10} {_printable(str(text))}")
    for name, text in headers:
        typer.echo(f"header     {_printable(name)}: {_printable(text)}")
    value = letter.record.value
    typer.echo(
        "value      " + ("null" if value is None else _printable(value.decode("utf-8", "backslashreplace")))
    )


@app.command("replay")
def replay_letters(
    ids: Ids = None,
    filters: Filters = None,
    everything: Annotated[bool, typer.Option("--all", help="All open letters.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be replayed.")] = False,
    max_replays: Annotated[
        int, typer.Option(min=1, help="Refuse what was replayed so often and came back each time.")
    ] = 3,
) -> None:
    """Publish dead letters again where they came from, in order, with their original key and headers."""
    kafka = KafkaSettings()
    chosen = _chosen(kafka, ids, filters, everything)
    try:
        for letter in chosen:
            replay_record(letter, replays_max_count=max_replays)
    except LetterError as error:
        _fail(str(error))
    if dry_run:
        for letter in chosen:
            typer.echo(f"would replay {letter.origin} ({_printable(letter.reason)})")
        typer.echo(f"{len(chosen)} would be replayed")
        return

    async def work() -> int:
        async with _producer(kafka) as producer:
            return await replay(kafka, producer, chosen, replays_max_count=max_replays)

    typer.echo(f"{_do(work())} replayed")


@app.command()
def discard(
    ids: Ids = None,
    filters: Filters = None,
    everything: Annotated[bool, typer.Option("--all", help="All open letters.")] = False,
    note: Annotated[str | None, typer.Option(help="Why, kept with the letter.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be discarded.")] = False,
) -> None:
    """Take dead letters off the list for good. They stay in the topic until its retention ends."""
    kafka = KafkaSettings()
    chosen = _chosen(kafka, ids, filters, everything)
    if dry_run:
        for letter in chosen:
            typer.echo(f"would discard {letter.origin} ({_printable(letter.reason)})")
        typer.echo(f"{len(chosen)} would be discarded")
        return

    async def work() -> int:
        async with _producer(kafka) as producer:
            for letter in chosen:
                await mark(kafka, producer, letter, "discarded", note)
        return len(chosen)

    typer.echo(f"{_do(work())} discarded")


def _producer(kafka: KafkaSettings) -> EventProducer:
    return EventProducer(
        kafka, client_id="towline-dead-letters", start_timeout_s=_START_S, max_record_bytes=_MAX_BYTES
    )


def _chosen(
    kafka: KafkaSettings, ids: list[str] | None, filters: list[str] | None, everything: bool
) -> list[Letter]:
    if not (ids or filters or everything):
        _fail("give ids, --filter or --all: nothing is chosen by default")
    letters = _do(read_letters(kafka))
    if not ids:
        return _select(letters, filters, ("open",))
    named = {letter.origin: letter for letter in (_find(letters, text) for text in ids)}
    for letter in named.values():
        if letter.state != "open":
            _fail(f"{letter.origin} was {letter.state} already")
    # In the order of the topic, however they were named.
    return [letter for letter in _select(letters, filters, ("open",)) if letter.origin in named]


def _select(letters: Letters, filters: list[str] | None, states: tuple[LetterState, ...]) -> list[Letter]:
    try:
        return letters.select(filters or (), states=states)
    except LetterError as error:
        _fail(str(error))


def _find(letters: Letters, letter_id: str) -> Letter:
    try:
        return letters.find(letter_id)
    except LetterError as error:
        _fail(str(error))


def _do(work: Coroutine[Any, Any, _T]) -> _T:
    try:
        return asyncio.run(work)
    except TowlineError as error:
        _fail(str(error))


def _line(value: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(value, ensure_ascii=False) + "\n")


def _printable(text: str) -> str:
    """Control characters escaped: a letter's content must not steer the terminal."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def _fail(message: str) -> NoReturn:
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(1)


if __name__ == "__main__":
    app()
