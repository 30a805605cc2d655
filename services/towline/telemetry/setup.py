"""Set-up of one process's telemetry."""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from opentelemetry import metrics, trace
from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from towline.telemetry.logs import configure_logging

if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource

_FLUSH_TIMEOUT_MS: Final = 2_000
_WRONG: Final = 2
"""Exit status for a wrong setting, as of the command line."""
_PROTOCOL: Final = "http/protobuf"
_log = logging.getLogger(__name__)


class LogSettings(BaseSettings):
    """How every role logs."""

    model_config = SettingsConfigDict(env_prefix="TOWLINE_LOG_", frozen=True, extra="ignore")

    level: str = Field(default="INFO", description="Lowest level of Towline's own logs.")
    format: Literal["auto", "json", "human"] = Field(
        default="auto", description="auto: human on a terminal, JSON elsewhere."
    )

    @field_validator("level")
    @classmethod
    def _check_level(cls, level: str) -> str:
        if level.upper() not in logging.getLevelNamesMapping():
            raise ValueError("must be one of DEBUG, INFO, WARNING, ERROR and CRITICAL")
        return level


class TraceSettings(BaseSettings):
    """Spans kept on this machine, besides what the standard `OTEL_*` variables ask for."""

    model_config = SettingsConfigDict(env_prefix="TOWLINE_TRACES_", frozen=True, extra="ignore")

    dir: Path | None = Field(
        default=None,
        description="Folder in which spans are kept for `towline trace`; for one machine. "
        "towline dev sets it.",
    )


def _exports(signal: str) -> bool:
    """Whether the standard variables ask for OTLP export of `signal` ("TRACES" or "METRICS")."""
    chosen = os.environ.get(f"OTEL_{signal}_EXPORTER")
    if chosen:  # an empty one is unset, as OpenTelemetry has it; several are separated by commas
        return "otlp" in (name.strip() for name in chosen.split(","))
    return bool(
        os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")
        or os.environ.get(f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT")
    )


def _tell_of_protocol(signal: str) -> None:
    """Say so if the environment asks for another protocol than the one that there is."""
    name = "OTEL_EXPORTER_OTLP_PROTOCOL"
    own = f"OTEL_EXPORTER_OTLP_{signal}_PROTOCOL"
    variable = own if os.environ.get(own) else name
    wanted = os.environ.get(variable)
    if wanted and wanted != _PROTOCOL:
        _log.warning(
            "otlp_protocol_unknown", extra={"variable": variable, "value": wanted, "used": _PROTOCOL}
        )


def _disabled() -> bool:
    return os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true"


@contextmanager
def set_up(service_name: str) -> Generator[None]:
    """Configure logging, tracing and metrics for this process; flush them at the end.

    Traces and metrics are exported by OTLP over http/protobuf if the standard `OTEL_*` variables name an
    endpoint. Metrics are also collected for ``/metrics``. Sampling is parent-based, and everything without
    a parent is sampled, unless OTEL_TRACES_SAMPLER says otherwise. Without an endpoint spans cost next to
    nothing, and the trace context of events is handed on all the same.

    Args:
        service_name: ``towline-bridge``, ``towline-worker``, …: the resource's ``service.name``.

    Raises:
        SystemExit: Status 2, with a line on standard error: the SDK cannot use one of the `OTEL_*` variables.
    """
    settings = LogSettings()
    json_lines = None if settings.format == "auto" else settings.format == "json"
    configure_logging(service_name, level=settings.level, json_lines=json_lines)
    with ExitStack() as traces, ExitStack() as measures:
        try:
            set_up_traces(service_name, traces)
            _set_up_metrics(service_name, measures)
        except ValidationError:
            raise
        except ValueError as error:
            sys.stderr.write(f"{service_name}: an OTEL_* variable cannot be used: {error}\n")
            raise SystemExit(_WRONG) from None
        try:
            yield
        finally:
            # Side by side: a collector that hangs is waited for once, not once for each signal.
            flushing = threading.Thread(target=traces.close, name="flush-traces")
            flushing.start()
            measures.close()
            flushing.join()


def set_up_traces(service_name: str, cleanup: ExitStack) -> None:
    """Set the process's tracer provider, if spans are to go anywhere; flushed when `cleanup` ends."""
    folder = TraceSettings().dir
    if _disabled() or not (_exports("TRACES") or folder):
        return
    # Imported only when asked for: the exporter costs 100 ms of start-up.
    from towline.telemetry import lean
    from towline.telemetry.export import SpanBatches
    from towline.telemetry.runs import RunAttributes

    provider = lean.provider(_resource(service_name))
    provider.add_span_processor(RunAttributes())
    if _exports("TRACES"):
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        from towline.telemetry import otlp

        _tell_of_protocol("TRACES")
        if lean.suffices():
            otlp.install()
        provider.add_span_processor(SpanBatches(OTLPSpanExporter(), end_within_ms=_FLUSH_TIMEOUT_MS))
    if folder is not None:
        from towline.telemetry.local import FileSpanExporter

        exporter = FileSpanExporter(folder, service_name)
        provider.add_span_processor(
            SpanBatches(exporter, end_within_ms=_FLUSH_TIMEOUT_MS, schedule_delay_millis=500)
        )
    trace.set_tracer_provider(provider)
    cleanup.callback(provider.shutdown)


def _set_up_metrics(service_name: str, cleanup: ExitStack) -> None:
    from opentelemetry.exporter.prometheus import PrometheusMetricReader
    from opentelemetry.sdk.metrics import AlwaysOffExemplarFilter, MeterProvider
    from opentelemetry.sdk.metrics.export import MetricReader, PeriodicExportingMetricReader

    readers: list[MetricReader] = [PrometheusMetricReader()]
    if not _disabled() and _exports("METRICS"):
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter

        _tell_of_protocol("METRICS")
        readers.append(PeriodicExportingMetricReader(OTLPMetricExporter()))
    # An exemplar costs each measurement within a sampled span as much as the measurement itself.
    exemplars = None if os.environ.get("OTEL_METRICS_EXEMPLAR_FILTER") else AlwaysOffExemplarFilter()
    provider = MeterProvider(
        metric_readers=readers, resource=_resource(service_name), exemplar_filter=exemplars
    )
    metrics.set_meter_provider(provider)
    cleanup.callback(provider.shutdown, _FLUSH_TIMEOUT_MS)


def _resource(service_name: str) -> Resource:
    from opentelemetry.sdk.resources import SERVICE_INSTANCE_ID, SERVICE_NAME, SERVICE_VERSION, Resource

    # The instance id tells replicas' metrics apart. OTEL_RESOURCE_ATTRIBUTES adds to these.
    return Resource.create(
        {
            SERVICE_NAME: service_name,
            SERVICE_VERSION: version("towline"),
            SERVICE_INSTANCE_ID: f"{socket.gethostname()}-{os.getpid()}",
        }
    )
