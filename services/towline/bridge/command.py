"""`towline bridge`."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Annotated

import typer

from towline.bridge import failpoints
from towline.bridge.app import Bridge
from towline.bridge.errors import ApprovalPolicyError
from towline.bridge.settings import BridgeSettings
from towline.contracts.errors import PayloadSettingsError
from towline.contracts.settings import KafkaSettings, SchedulerSettings
from towline.telemetry import HealthServer, ListenError, event_loop, set_up

app = typer.Typer(
    pretty_exceptions_enable=False, help="Commands from Kafka to the scheduler.", no_args_is_help=False
)


@app.callback(invoke_without_command=True)
def bridge(
    http_listen: Annotated[
        str | None, typer.Option(help="host:port of /healthz, /readyz and /metrics; port 0 takes a free one.")
    ] = None,
) -> None:
    """Run the bridge until SIGTERM. Settings: TOWLINE_BRIDGE_*, _KAFKA_*, _SCHEDULER_*."""
    settings = BridgeSettings() if http_listen is None else BridgeSettings(http_listen=http_listen)
    failpoints.arm_from(os.environ.get("TOWLINE_BRIDGE_FAILPOINTS", ""))
    with set_up("towline-bridge"):
        try:
            event_loop.run(_run(Bridge(settings, KafkaSettings(), SchedulerSettings())))
        except (PayloadSettingsError, ApprovalPolicyError) as error:
            typer.echo(f"towline bridge: {error}", err=True)
            raise typer.Exit(2) from error
        except ListenError as error:  # status 1: whoever has the address may be about to leave
            typer.echo(f"towline bridge: {error}", err=True)
            raise typer.Exit(1) from error


async def _run(bridge: Bridge) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, bridge.stop)
    with HealthServer(bridge.settings.http_listen, live=bridge.not_alive, ready=bridge.not_ready):
        await bridge.run()
