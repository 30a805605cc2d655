# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# grpcio has no types of its own.
"""Command line: ``towline scheduler``."""

from __future__ import annotations

import json
import logging
import os
import re
from pathlib import Path
from typing import Annotated, Any, Final

import grpc
import typer
from google.protobuf.duration_pb2 import Duration
from google.protobuf.empty_pb2 import Empty
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp

from towline.scheduler import logs
from towline.scheduler.server import loop
from towline.scheduler.server.app import Server, serve
from towline.scheduler.settings import ENV_PREFIX, ConfigurationError, SchedulerSettings, descriptions
from towline.scheduler.store.database import FILE_NAME
from towline.scheduler.store.database import backup as copy_database
from towline.scheduler.store.errors import StoreError

app = typer.Typer(
    name="scheduler",
    help="Run the durable scheduler: a Durable Task server for one machine, on SQLite.",
    add_completion=False,
    pretty_exceptions_enable=False,
)
_log = logging.getLogger("towline.scheduler")
_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}


_DESCRIPTIONS: Final = descriptions()


def _help(name: str) -> str:
    return _DESCRIPTIONS[name]


def _option(name: str) -> Any:
    return typer.Option(help=_help(name), show_default=False)


@app.callback(invoke_without_command=True)
def run(
    context: typer.Context,
    data: Annotated[Path | None, _option("data")] = None,
    listen: Annotated[str | None, _option("listen")] = None,
    metrics_listen: Annotated[str | None, _option("metrics_listen")] = None,
    port_file: Annotated[Path | None, _option("port_file")] = None,
    tls_cert: Annotated[Path | None, _option("tls_cert")] = None,
    tls_key: Annotated[Path | None, _option("tls_key")] = None,
    token: Annotated[str | None, _option("token")] = None,
    test_clock: Annotated[bool | None, typer.Option("--test-clock", help=_help("test_clock"))] = None,
    retention_s: Annotated[float | None, _option("retention_s")] = None,
    grace_s: Annotated[float | None, _option("grace_s")] = None,
    orchestration_lease_s: Annotated[float | None, _option("orchestration_lease_s")] = None,
    activity_lease_s: Annotated[float | None, _option("activity_lease_s")] = None,
    entity_lease_s: Annotated[float | None, _option("entity_lease_s")] = None,
    max_work_item_bytes: Annotated[int | None, _option("max_work_item_bytes")] = None,
    max_history_events: Annotated[int | None, _option("max_history_events")] = None,
    max_history_bytes: Annotated[int | None, _option("max_history_bytes")] = None,
    log_level: Annotated[str | None, _option("log_level")] = None,
) -> None:
    """Run the server until SIGTERM or Ctrl-C. Flags are also variables, TOWLINE_SCHEDULER_..."""
    if context.invoked_subcommand is not None:
        return
    options: dict[str, Any] = {
        "data": data,
        "listen": listen,
        "metrics_listen": metrics_listen,
        "port_file": port_file,
        "tls_cert": tls_cert,
        "tls_key": tls_key,
        "token": token,
        "test_clock": test_clock,
        "retention_s": retention_s,
        "grace_s": grace_s,
        "orchestration_lease_s": orchestration_lease_s,
        "activity_lease_s": activity_lease_s,
        "entity_lease_s": entity_lease_s,
        "max_work_item_bytes": max_work_item_bytes,
        "max_history_events": max_history_events,
        "max_history_bytes": max_history_bytes,
        "log_level": log_level,
    }
    try:
        settings = SchedulerSettings.read(options)
        _configure_logs(settings, "--log-level" if log_level else f"{ENV_PREFIX}LOG_LEVEL")
        loop.run(serve(settings, lambda server: _ready(server, settings)))
    except (ConfigurationError, StoreError) as error:
        _fail(str(error))


def _configure_logs(settings: SchedulerSettings, name: str) -> None:
    try:
        logs.configure(settings.log_level)
    except ValueError as error:
        raise ConfigurationError(f"{name} {error}") from None


def _ready(server: Server, settings: SchedulerSettings) -> None:
    if settings.port_file is not None:
        # Readers never see half an address.
        partial = settings.port_file.with_name(settings.port_file.name + ".partial")
        try:
            partial.write_text(server.address + "\n", encoding="utf-8")
            partial.rename(settings.port_file)
        except OSError as error:
            raise ConfigurationError(f"--port-file {settings.port_file}: {error.strerror}") from error
    _log.info(
        "server.ready",
        extra={
            "address": server.address,
            "metrics": server.metrics_address or None,
            "data": str(settings.data),
            "test_clock": settings.test_clock,
            "pid": os.getpid(),
        },
    )


def _fail(message: str) -> None:
    typer.echo(f"towline scheduler: {message}", err=True)
    raise typer.Exit(2)


_Address = Annotated[
    str,
    typer.Option(
        help="Address of the server, HOST:PORT or http(s)://HOST:PORT", envvar="TOWLINE_SCHEDULER_ADDRESS"
    ),
]
_Token = Annotated[str | None, typer.Option(help="Bearer token", envvar="TOWLINE_SCHEDULER_TOKEN")]
_Ca = Annotated[
    Path | None,
    typer.Option(
        help="PEM file with the certificate to trust; without it, plaintext unless the address is https://"
    ),
]


def _call(
    address: str, method: str, request: Any, *, token: str | None, ca: Path | None, timeout_s: float = 60
) -> bytes:
    scheme, separator, target = address.rpartition("://")
    if ca is None and (not separator or scheme.lower() in {"http", "grpc"}):
        channel = grpc.insecure_channel(target)
    else:
        channel = grpc.secure_channel(target, grpc.ssl_channel_credentials(_certificate(ca)))
    with channel:
        call = channel.unary_unary(f"/towline.scheduler.Admin/{method}")
        metadata = (("authorization", f"Bearer {token}"),) if token else ()
        try:
            return call(request.SerializeToString(), metadata=metadata, timeout=timeout_s)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                _fail(f"{address} does not offer {method} (time can be skipped with --test-clock only)")
            _fail(f"{address}: {error.details()}")
            raise


def _certificate(ca: Path | None) -> bytes | None:
    try:
        return None if ca is None else ca.read_bytes()
    except OSError as error:
        _fail(f"--ca {ca}: {error.strerror}")
        raise


@app.command()
def stats(
    address: _Address = "127.0.0.1:8080",
    token: _Token = None,
    ca: _Ca = None,
) -> None:
    """Print figures about a running server as JSON."""
    from google.protobuf.json_format import (
        MessageToDict,  # takes a tenth of the server's start, and is for this only
    )

    struct = Struct.FromString(_call(address, "GetStats", Empty(), token=token, ca=ca))
    typer.echo(json.dumps(MessageToDict(struct), indent=2, sort_keys=True))


@app.command()
def backup(
    destination: Annotated[Path, typer.Argument(help="File to write; must not exist")],
    data: Annotated[
        Path | None,
        typer.Option(help="Data folder of the server, which may be running", envvar="TOWLINE_SCHEDULER_DATA"),
    ] = None,
) -> None:
    """Copy the database as of one moment, while the server runs or not."""
    try:
        folder = data or SchedulerSettings.read({}).data
        size = copy_database(folder / FILE_NAME, destination)
    except (ConfigurationError, StoreError) as error:
        _fail(str(error))
        return
    typer.echo(f"{destination}: {size} bytes")


@app.command("skip-time")
def skip_time(
    duration: Annotated[str, typer.Argument(help="How far, for example 72h, 90m or 1d12h")],
    address: _Address = "127.0.0.1:8080",
    token: _Token = None,
    ca: _Ca = None,
) -> None:
    """Move the clock of a server forward that runs with --test-clock."""
    request = Duration()
    request.FromMilliseconds(parse_duration_ms(duration))
    now = Timestamp.FromString(_call(address, "SkipTime", request, token=token, ca=ca))
    typer.echo(now.ToJsonString())


def parse_duration_ms(text: str) -> int:
    """Milliseconds of ``72h``, ``90m``, ``1d12h``; a bare number is seconds.

    Raises:
        typer.BadParameter: It is not of that form.
    """
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return int(float(text) * 1000)
    parts = re.findall(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)", text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise typer.BadParameter(f"'{text}' is no duration: write 72h, 90m or 1d12h")
    return int(sum(float(number) * _UNITS[unit] for number, unit in parts) * 1000)
