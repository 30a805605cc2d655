"""Set-up of one process's telemetry."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from towline.telemetry.logs import configure_logging


class LogSettings(BaseSettings):
    """How every role logs."""

    model_config = SettingsConfigDict(env_prefix="TOWLINE_LOG_", frozen=True, extra="ignore")

    level: str = Field(default="INFO", description="Lowest level of Towline's own logs.")
    format: Literal["auto", "json", "human"] = Field(
        default="auto", description="auto: human on a terminal, JSON elsewhere."
    )


@contextmanager
def set_up(service_name: str) -> Generator[None]:
    """Configure logging (and, by the standard `OTEL_*` variables, tracing and metrics) for this process.

    Args:
        service_name: ``towline-bridge``, ``towline-worker``, …: the resource's ``service.name``.
    """
    settings = LogSettings()
    json_lines = None if settings.format == "auto" else settings.format == "json"
    configure_logging(service_name, level=settings.level, json_lines=json_lines)
    yield
