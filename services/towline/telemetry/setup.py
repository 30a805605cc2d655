"""Set-up of one process's telemetry."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from typing import Final, Literal

from opentelemetry import metrics, trace
from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from towline.telemetry.logs import configure_logging

_FLUSH_TIMEOUT_MS: Final = 2_000


class LogSettings(BaseSettings):
    """How every role logs."""

    model_config = SettingsConfigDict(env_prefix="TOWLINE_LOG_", frozen=True, extra="ignore")

    level: str = Field(default="INFO", description="Lowest level of Towline's own logs.")
    format: Literal["auto", "json", "human"] = Field(
        default="auto", description="auto: human on a terminal, JSON elsewhere."
    )


def _exports(signal: str) -> bool:
    """Whether the standard variables ask for OTLP export of `signal` ("TRACES" or "METRICS")."""
    if os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    chosen = os.environ.get(f"OTEL_{signal}_EXPORTER")
    if chosen is not None:
        return chosen == "otlp"
    return bool(
        os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")
        or os.environ.get(f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT")
    )


@contextmanager
def set_up(service_name: str) -> Generator[None]:
    """Configure logging, tracing and metrics for this process; flush them at the end.

    Traces and metrics are exported by OTLP over http/protobuf if the standard `OTEL_*` variables name an
    endpoint. Metrics are also collected for ``/metrics``. Without an endpoint spans cost next to nothing.

    Args:
        service_name: ``towline-bridge``, ``towline-worker``, …: the resource's ``service.name``.
    """
    settings = LogSettings()
    json_lines = None if settings.format == "auto" else settings.format == "json"
    configure_logging(service_name, level=settings.level, json_lines=json_lines)
    with ExitStack() as cleanup:
        _set_up_traces(service_name, cleanup)
        _set_up_metrics(service_name, cleanup)
        yield


def _set_up_traces(service_name: str, cleanup: ExitStack) -> None:
    if not _exports("TRACES"):
        return
    # Imported only when asked for: the exporter costs 100 ms of start-up.
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider(resource=Resource.create({SERVICE_NAME: service_name}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    cleanup.callback(provider.shutdown)
    cleanup.callback(provider.force_flush, _FLUSH_TIMEOUT_MS)


def _set_up_metrics(service_name: str, cleanup: ExitStack) -> None:
    from opentelemetry.exporter.prometheus import PrometheusMetricReader
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import MetricReader, PeriodicExportingMetricReader
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource

    readers: list[MetricReader] = [PrometheusMetricReader()]
    if _exports("METRICS"):
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter

        readers.append(PeriodicExportingMetricReader(OTLPMetricExporter()))
    provider = MeterProvider(metric_readers=readers, resource=Resource.create({SERVICE_NAME: service_name}))
    metrics.set_meter_provider(provider)
    cleanup.callback(provider.shutdown, _FLUSH_TIMEOUT_MS)
