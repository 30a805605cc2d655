"""The command line of the relay."""

from __future__ import annotations

import asyncio
import sys
from typing import Annotated

import typer

from towline.contracts.errors import PayloadSettingsError
from towline.contracts.settings import KafkaSettings, RedisSettings
from towline.relay.auth.keys import new_key
from towline.relay.errors import RelaySettingsError
from towline.relay.principals import parse_roles
from towline.relay.server import serve
from towline.relay.settings import RelaySettings
from towline.telemetry import set_up

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.callback(invoke_without_command=True)
def relay(
    context: typer.Context,
    listen: Annotated[str | None, typer.Option(help="host:port; default: TOWLINE_RELAY_HTTP_LISTEN.")] = None,
) -> None:
    """Streams, HTTP and lookups. Settings come from TOWLINE_RELAY_*, TOWLINE_KAFKA_*, TOWLINE_REDIS_*."""
    if context.invoked_subcommand is not None:
        return
    settings = RelaySettings() if listen is None else RelaySettings(http_listen=listen)
    kafka, redis_settings = KafkaSettings(), RedisSettings()
    with set_up("towline-relay"):
        try:
            _run(serve(settings, kafka, redis_settings))
        except (RelaySettingsError, PayloadSettingsError) as error:
            sys.stderr.write(f"towline relay: {error}\n")
            raise typer.Exit(2) from error


@app.command("new-key")
def new_key_command(
    name: Annotated[str, typer.Argument(help="Who will use it: the approver, the requester.")],
    role: Annotated[list[str] | None, typer.Option(help="read, start, approve; may be repeated.")] = None,
) -> None:
    """Make an API key: itself goes to standard error, its line for the key file to standard output."""
    roles = parse_roles(role or ["read"])
    if len(roles) != len(set(role or ["read"])):
        sys.stderr.write("towline relay new-key: --role: one of read, start, approve\n")
        raise typer.Exit(2)
    key, line = new_key(name, roles)
    sys.stderr.write(f"{key}\n")
    sys.stdout.write(f"{line}\n")


@app.command("new-signing-key")
def new_signing_key_command() -> None:
    """Make a key for signed decisions: private half to standard error, public half to standard output.

    The first is for TOWLINE_RELAY_SIGNING_KEY_FILE, the second for "keys" of the bridge's approval policy.
    """
    from towline.contracts.signing import new_signing_key

    private, public = new_signing_key()
    sys.stderr.write(f"{private}\n")
    sys.stdout.write(f"{public}\n")


def _run(main: object) -> None:
    if sys.platform == "win32":
        asyncio.run(main)  # pyright: ignore[reportArgumentType]
        return
    import uvloop

    uvloop.run(main)  # pyright: ignore[reportArgumentType]
