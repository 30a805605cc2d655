"""Settings of ``towline scheduler``: flags over environment (``TOWLINE_SCHEDULER_…``) over defaults.

Plain dataclass fields, read by the few lines below: a killed server has to be back within a second, and
loading pydantic took more of that than everything else together.
"""
# ruff: noqa: RUF009  # every call is of _setting, which makes a dataclass field

from __future__ import annotations

import ipaddress
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final, Self, TypeVar

from towline.scheduler.engine.ports import Limits
from towline.scheduler.server.runtime import Leases
from towline.scheduler.server.world import CacheLimits

_WORK_ITEM_MARGIN = 65_536
_PAYLOAD_MARGIN = 131_072
ENV_PREFIX: Final = "TOWLINE_SCHEDULER_"
_T = TypeVar("_T")
_WORDS: Final = {
    **dict.fromkeys(("1", "true", "yes", "on"), True),
    **dict.fromkeys(("0", "false", "no", "off"), False),
}


class ConfigurationError(Exception):
    """Settings that make no sense or don't go together. The message is one line for a person."""


def _switch(text: str) -> bool:
    return _WORDS[text.lower()]


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError
    return value


def _setting(
    default: _T,
    description: str,
    read: Callable[[str], object] = str,
    *,
    least: float | None = None,
    above: float | None = None,
    secret: bool = False,
) -> _T:
    metadata = {
        "description": description,
        "read": read,
        "least": least,
        "above": above,
        "secret": secret,
    }
    return field(default=default, repr=not secret, metadata=metadata)


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerSettings:
    """Everything that can be set. Read once, at start."""

    data: Path = _setting(Path("towline-scheduler"), "Folder of the database; made if need be", Path)
    listen: str = _setting("127.0.0.1:8080", "Address of the gRPC server, HOST:PORT; port 0 takes a free one")
    metrics_listen: str | None = _setting(None, "Address of the Prometheus metrics, HOST:PORT; off if unset")
    port_file: Path | None = _setting(None, "File to write the address to once the server is ready", Path)
    tls_cert: Path | None = _setting(None, "PEM file with the certificate chain", Path)
    tls_key: Path | None = _setting(None, "PEM file with the private key", Path)
    token: str | None = _setting(None, "Bearer token that every call must carry", secret=True)
    token_file: Path | None = _setting(None, "File that holds the token, for example a mounted secret", Path)
    test_clock: bool = _setting(False, "Let callers skip time (for tests)", _switch)
    max_receive_bytes: int = _setting(
        64 * 1024 * 1024, "Largest message accepted, in bytes", int, least=1_048_576
    )
    max_work_item_bytes: int = _setting(
        4_194_304, "Receive limit of the workers, in bytes; no larger work item is sent", int, least=262_144
    )
    max_history_events: int = _setting(
        10_000, "Most history events in one generation of an instance", int, least=100
    )
    max_history_bytes: int = _setting(
        64 * 1024 * 1024,
        "Largest history of one generation, in bytes, for workers that fetch what does not fit a work item",
        int,
        least=262_144,
    )
    orchestration_lease_s: float = _setting(
        60.0, "Seconds a worker may take for an orchestrator turn", _number, above=0
    )
    activity_lease_s: float = _setting(
        14_400.0, "Seconds a worker may take for an activity", _number, above=0
    )
    entity_lease_s: float = _setting(
        14_400.0, "Seconds a worker may take for an entity batch", _number, above=0
    )
    grace_s: float = _setting(
        5.0, "Seconds a worker that is out of sight may still answer in", _number, least=0
    )
    max_losses: int = _setting(
        10, "Times a work item may be lost with its worker before it is failed", int, least=1
    )
    retention_s: float | None = _setting(
        None, "Seconds finished instances are kept; for ever if unset", _number, above=0
    )
    unclaimed_after_s: float = _setting(
        30.0, "Seconds work waits that no connected worker takes before the log names it", _number, above=0
    )
    health_ping_s: float = _setting(25.0, "Seconds between pings to idle workers", _number, above=0)
    log_level: str = _setting("info", "Least level of logs")
    cache_mb: int = _setting(128, "Memory for ready history, in MiB", int, least=1)
    cache_instances: int = _setting(20_000, "Instances kept in memory", int, least=100)

    @classmethod
    def read(cls, options: Mapping[str, object], environ: Mapping[str, str] = os.environ) -> Self:
        """Settings from what was given on the command line (None: not given), then from the environment.

        Raises:
            ConfigurationError: A value makes no sense, or the token file can't be read.
        """
        values: dict[str, Any] = {}
        for setting in fields(cls):
            variable = ENV_PREFIX + setting.name.upper()
            given = options.get(setting.name)
            if given is not None:
                values[setting.name] = _checked(
                    f"--{setting.name.replace('_', '-')}", given, setting.metadata
                )
            elif text := environ.get(variable):
                values[setting.name] = _checked(variable, text, setting.metadata)
        path: Path | None = values.get("token_file")
        if path is not None and not values.get("token"):
            values["token"] = _read_token(path)
        return cls(**values)

    def limits(self) -> Limits:
        """Limits of the engine."""
        return Limits(
            work_item_bytes=self.max_work_item_bytes - _WORK_ITEM_MARGIN,
            payload_bytes=self.max_work_item_bytes - _PAYLOAD_MARGIN,
            history_events=self.max_history_events,
            history_bytes=self.max_history_bytes,
            losses=self.max_losses,
        )

    def leases(self) -> Leases:
        """Lease times."""
        return Leases(
            orchestration_s=self.orchestration_lease_s,
            activity_s=self.activity_lease_s,
            entity_s=self.entity_lease_s,
            grace_s=self.grace_s,
        )

    def cache(self) -> CacheLimits:
        """Memory limits."""
        return CacheLimits(instances=self.cache_instances, history_bytes=self.cache_mb * 1024 * 1024)

    def check(self) -> None:
        """Refuse what would expose the data.

        Raises:
            ConfigurationError: It listens beyond this machine without TLS and a token, or an address is
            wrong.
        """
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ConfigurationError("--tls-cert and --tls-key must be given together")
        for name, address in (("--listen", self.listen), ("--metrics-listen", self.metrics_listen)):
            if address is not None:
                split_address(name, address)
        if is_loopback(self.listen):
            return
        missing = [
            flag
            for flag, value in (
                ("--tls-cert", self.tls_cert),
                ("--tls-key", self.tls_key),
                ("--token", self.token),
            )
            if not value
        ]
        if missing:
            raise ConfigurationError(
                f"--listen {self.listen} is reachable from other machines: give {', '.join(missing)} as well "
                "(or listen on 127.0.0.1)"
            )


def _checked(name: str, given: object, metadata: Mapping[str, Any]) -> object:
    value = given
    if isinstance(given, str):
        try:
            value = metadata["read"](given)
        except (ValueError, KeyError):
            kinds = {int: "a whole number", _number: "a number", _switch: "true or false"}
            raise ConfigurationError(f"{name} must be {kinds[metadata['read']]}, not '{given}'") from None
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigurationError(f"{name} must be a number, not {given}")
    if metadata["least"] is not None and not (isinstance(value, int | float) and value >= metadata["least"]):
        raise ConfigurationError(f"{name} must be at least {metadata['least']}, not {given}")
    if metadata["above"] is not None and not (isinstance(value, int | float) and value > metadata["above"]):
        raise ConfigurationError(f"{name} must be more than {metadata['above']}, not {given}")
    return value


def _read_token(path: Path) -> str:
    try:
        token = path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ConfigurationError(f"token file {path}: {error.strerror}") from None
    if not token:
        raise ConfigurationError(f"token file {path} is empty")
    return token


@dataclass(frozen=True, slots=True)
class Variable:
    """One setting as an environment variable, for documentation."""

    name: str
    default: object
    description: str
    is_secret: bool


def variables() -> list[Variable]:
    """All settings, in order."""
    return [
        Variable(
            ENV_PREFIX + setting.name.upper(),
            setting.default,
            setting.metadata["description"],
            setting.metadata["secret"],
        )
        for setting in fields(SchedulerSettings)
    ]


def descriptions() -> dict[str, str]:
    """What each setting means, by field name."""
    return {setting.name: setting.metadata["description"] for setting in fields(SchedulerSettings)}


def split_address(name: str, address: str) -> tuple[str, int]:
    """Host and port of ``HOST:PORT``.

    Raises:
        ConfigurationError: It is not of that form.
    """
    host, separator, port = address.rpartition(":")
    is_port = port.isascii() and port.isdigit() and len(port) <= 5 and int(port) <= 65_535
    if not separator or not host or not is_port:
        raise ConfigurationError(f"{name} {address}: expected HOST:PORT")
    return host.strip("[]"), int(port)


def is_loopback(address: str) -> bool:
    """Whether an address is reachable from this machine only."""
    host, _ = split_address("--listen", address)
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
