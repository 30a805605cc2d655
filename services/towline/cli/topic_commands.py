"""`towline topics create`: for deployments in which services may not create topics themselves."""

from __future__ import annotations

from typing import Annotated

import typer

from towline.cli.output import Printer
from towline.cli.run import execute
from towline.contracts.kafka import ensure_topics
from towline.contracts.settings import KafkaSettings

topics = typer.Typer(name="topics", help="Topics of the wire contract.", no_args_is_help=True)


@topics.callback()
def group() -> None:
    """Topics of the wire contract."""


@topics.command()
def create(
    partitions: Annotated[
        int | None,
        typer.Option(min=1, help="For topics with more than one; default: as in docs/wire-contract.md."),
    ] = None,
    replication_factor: Annotated[int, typer.Option(help="-1: the brokers' default.")] = -1,
    timeout_s: Annotated[float, typer.Option("--timeout", min=1, help="Seconds to wait for a broker.")] = 60,
) -> None:
    """Create those topics that are missing; change none. Prints the names of the new ones."""
    execute(_create(partitions, replication_factor, timeout_s))


async def _create(partitions: int | None, replication_factor: int, timeout_s: float) -> None:
    created = await ensure_topics(
        KafkaSettings(), partitions=partitions, replication_factor=replication_factor, timeout_s=timeout_s
    )
    for name in created:
        Printer.line(name)
