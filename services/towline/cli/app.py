"""All commands in one application."""

from __future__ import annotations

import typer

from towline.cli import commands, reading, roles
from towline.cli.settings_table import settings

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
    settings,
):
    app.command()(command)
roles.mount(app)


@app.command()
def version() -> None:
    """Print the installed version."""
    from importlib.metadata import version as installed

    typer.echo(installed("towline"))


def run() -> None:
    """Parse the command line and run it."""
    app()
