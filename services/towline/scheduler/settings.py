"""Settings of ``towline scheduler``: flags over environment (``TOWLINE_SCHEDULER_…``) over defaults."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Any

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from towline.scheduler.engine.ports import Limits
from towline.scheduler.server.runtime import Leases
from towline.scheduler.server.world import CacheLimits

_WORK_ITEM_MARGIN = 65_536
_PAYLOAD_MARGIN = 131_072


class ConfigurationError(Exception):
    """Settings that don't go together. The message is one line for a person."""


class SchedulerSettings(BaseSettings):
    """Everything that can be set. Read once, at start."""

    model_config = SettingsConfigDict(env_prefix="TOWLINE_SCHEDULER_", frozen=True, extra="ignore")

    data: Path = Field(
        default=Path("towline-scheduler"), description="Folder of the database; made if need be"
    )
    listen: str = Field(
        default="127.0.0.1:8080", description="Address of the gRPC server, HOST:PORT; port 0 takes a free one"
    )
    metrics_listen: str | None = Field(
        default=None, description="Address of the Prometheus metrics, HOST:PORT; off if unset"
    )
    port_file: Path | None = Field(
        default=None, description="File to write the address to once the server is ready"
    )
    tls_cert: Path | None = Field(default=None, description="PEM file with the certificate chain")
    tls_key: Path | None = Field(default=None, description="PEM file with the private key")
    token: SecretStr | None = Field(default=None, description="Bearer token that every call must carry")
    token_file: Path | None = Field(
        default=None, description="File that holds the token, for example a mounted secret"
    )
    test_clock: bool = Field(default=False, description="Let callers skip time (for tests)")
    max_receive_bytes: int = Field(
        default=64 * 1024 * 1024, ge=1_048_576, description="Largest message accepted, in bytes"
    )
    max_work_item_bytes: int = Field(
        default=4_194_304,
        ge=262_144,
        description="Receive limit of the workers, in bytes; no larger work item is sent",
    )
    max_history_events: int = Field(
        default=10_000, ge=100, description="Most history events in one generation of an instance"
    )
    orchestration_lease_s: float = Field(
        default=60.0, gt=0, description="Seconds a worker may take for an orchestrator turn"
    )
    activity_lease_s: float = Field(
        default=14_400.0, gt=0, description="Seconds a worker may take for an activity"
    )
    entity_lease_s: float = Field(
        default=14_400.0, gt=0, description="Seconds a worker may take for an entity batch"
    )
    grace_s: float = Field(
        default=5.0, ge=0, description="Seconds a worker that is out of sight may still answer in"
    )
    max_losses: int = Field(
        default=10, ge=1, description="Times a work item may be lost with its worker before it is failed"
    )
    retention_s: float | None = Field(
        default=None, gt=0, description="Seconds finished instances are kept; for ever if unset"
    )
    health_ping_s: float = Field(default=25.0, gt=0, description="Seconds between pings to idle workers")
    cache_mb: int = Field(default=128, ge=1, description="Memory for ready history, in MiB")
    cache_instances: int = Field(default=20_000, ge=100, description="Instances kept in memory")

    @model_validator(mode="before")
    @classmethod
    def _read_token_file(cls, values: dict[str, Any]) -> dict[str, Any]:
        path = values.get("token_file")
        if not path or values.get("token"):
            return values
        try:
            token = Path(path).read_text(encoding="utf-8").strip()
        except OSError as error:
            raise ValueError(f"{path}: {error.strerror}") from None
        if not token:
            raise ValueError(f"{path} is empty")
        return {**values, "token": token}

    def limits(self) -> Limits:
        """Limits of the engine."""
        return Limits(
            work_item_bytes=self.max_work_item_bytes - _WORK_ITEM_MARGIN,
            payload_bytes=self.max_work_item_bytes - _PAYLOAD_MARGIN,
            history_events=self.max_history_events,
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


def split_address(name: str, address: str) -> tuple[str, int]:
    """Host and port of ``HOST:PORT``.

    Raises:
        ConfigurationError: It is not of that form.
    """
    host, separator, port = address.rpartition(":")
    if not separator or not host or not port.isdigit() or int(port) > 65_535:
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
