"""A real OpenTelemetry Collector as a child process, built from deploy/collector."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import httpx
from tests.integration.telemetry.go_build import DEPLOY, built

from towline.dev import ports
from towline.dev.part import Part

SOURCE: Final = DEPLOY / "collector"
CONFIG: Final = DEPLOY.parent / "otel-collector.yaml"


def collector_binary() -> Path:
    """The collector's executable.

    Raises:
        NoProgramError: It can't be had on this machine.
    """
    return built("otelcol", SOURCE, ("main.go", "go.mod", "go.sum"))


class CollectorPart(Part):
    """The collector with otel-collector.yaml; traces go to a file instead of a trace backend."""

    def __init__(self, binary: Path, *, data: Path) -> None:
        super().__init__("collector", data=data)
        self._binary = binary
        self.grpc, self.http, self.health, self.prometheus = (ports.lease() for _ in range(4))
        self.traces_file = data / "traces.jsonl"

    @property
    def addresses(self) -> Mapping[str, str]:
        return {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{self.http}"}

    def environment(self) -> Mapping[str, str]:
        return {
            **os.environ,
            "OTELCOL_OTLP_GRPC": f"127.0.0.1:{self.grpc}",
            "OTELCOL_OTLP_HTTP": f"127.0.0.1:{self.http}",
            "OTELCOL_HEALTH": f"127.0.0.1:{self.health}",
            "OTELCOL_PROMETHEUS": f"127.0.0.1:{self.prometheus}",
            "OTELCOL_DECISION_WAIT": "1s",
            "OTELCOL_METRICS_FLUSH": "200ms",
            "OTELCOL_SAMPLING_PERCENTAGE": "100",
        }

    def command(self) -> Sequence[str]:
        self.traces_file.touch()
        return [
            str(self._binary),
            "--config",
            str(CONFIG),
            "--config",
            f"yaml:exporters::file::path: {self.traces_file}",
            "--config",
            "yaml:exporters::file::flush_interval: 100ms",
            "--config",
            "yaml:service::pipelines::traces::exporters: [file]",
            # Of itself, at a port that another collector on this machine may have.
            "--config",
            "yaml:service::telemetry::metrics::level: none",
        ]

    def probe(self) -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{self.health}", timeout=1.0).is_success
        except httpx.HTTPError:
            return False

    def spans(self) -> Iterator[dict[str, Any]]:
        """Every span that came out so far, with its service's name under ``service``."""
        for line in self.traces_file.read_text().splitlines():
            for resource in json.loads(line)["resourceSpans"]:
                service = attributes(resource["resource"]).get("service.name")
                for scope in resource["scopeSpans"]:
                    yield from ({**span, "service": service} for span in scope["spans"])

    def metrics(self) -> str:
        """What Prometheus would scrape."""
        return httpx.get(f"http://127.0.0.1:{self.prometheus}/metrics", timeout=5.0).text


def attributes(holder: Mapping[str, Any]) -> dict[str, Any]:
    """OTLP's list of attributes as a dict."""
    return {a["key"]: next(iter(a["value"].values()), None) for a in holder.get("attributes", [])}
