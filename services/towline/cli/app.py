"""All commands in one application."""

from __future__ import annotations

from typing import Annotated

import typer

from towline.cli import commands, reading, roles
from towline.cli.health import health as ask_health
from towline.cli.init_secrets import init_secrets
from towline.cli.settings_table import settings
from towline.cli.topic_commands import topics
from towline.cli.trace import trace

app = typer.Typer(
    name="towline",
    help="Durable Microsoft Agent Framework agents behind Kafka.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for command in (
    commands.publish,
    reading.tail,
    commands.approve,
    commands.reject,
    commands.raise_event,
    commands.cancel,
    commands.suspend,
    commands.resume,
    reading.results,
    reading.events,
    reading.runs,
    trace,
    settings,
    init_secrets,
):
    app.command()(command)
app.add_typer(topics)
roles.mount(app)


@app.command()
def health(url: Annotated[str, typer.Argument(metavar="URL", help="For example a role's /readyz.")]) -> None:
    """Ask URL once; exits 0 if it answers well. For health checks."""
    raise typer.Exit(ask_health([url]))


@app.command()
def version() -> None:
    """Print the installed version."""
    from importlib.metadata import version as installed

    typer.echo(installed("towline"))


def run() -> None:
    """Parse the command line and run it."""
    app()
