"""otel-collector.yaml, judged by a real collector."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Generator
from pathlib import Path

import pytest
import yaml
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.trace import Status, StatusCode
from tests.integration.telemetry.collector import (
    CONFIG,
    CollectorPart,
    attributes,
    collector_binary,
)
from tests.integration.telemetry.go_build import DEPLOY, NoProgramError
from tests.waiting import eventually

PROMPT = "the secret prompt text"
pytestmark = pytest.mark.timeout(900)  # the first run on a machine builds the collector


@pytest.fixture(scope="module")
def binary() -> Path:
    try:
        return collector_binary()
    except NoProgramError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def collector(binary: Path, tmp_path_factory: pytest.TempPathFactory) -> Generator[CollectorPart]:
    with CollectorPart(binary, data=tmp_path_factory.mktemp("collector")) as part:
        yield part


def test_the_configuration_is_valid(binary: Path) -> None:
    checked = subprocess.run(
        [binary, "validate", "--config", CONFIG], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stderr


def test_the_check_can_fail(binary: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.yaml"
    broken.write_text(CONFIG.read_text().replace("decision_wait:", "decision_weight:"))
    checked = subprocess.run(
        [binary, "validate", "--config", broken], capture_output=True, text=True, check=False
    )
    assert checked.returncode != 0
    assert "decision_weight" in checked.stdout + checked.stderr


def test_spans_come_out_whole_but_without_prompts_and_secrets(collector: CollectorPart) -> None:
    provider = TracerProvider(resource=Resource.create({"service.name": "towline-worker"}))
    exporter = OTLPSpanExporter(endpoint=f"http://127.0.0.1:{collector.http}/v1/traces")
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("test")
    with tracer.start_as_current_span("chat model-x") as span:
        span.set_attribute("gen_ai.request.model", "model-x")
        span.set_attribute("gen_ai.input.messages", PROMPT)
        span.set_attribute("db.password", PROMPT)
        span.set_attribute("towline.run_type", "review")
        span.set_status(Status(StatusCode.ERROR, "model away"))
    provider.shutdown()

    eventually(lambda: any(s["name"] == "chat model-x" for s in collector.spans()))
    span_out = next(s for s in collector.spans() if s["name"] == "chat model-x")
    assert span_out["service"] == "towline-worker"
    assert attributes(span_out)["gen_ai.request.model"] == "model-x"
    assert PROMPT not in collector.traces_file.read_text()

    def counted() -> bool:
        return any(
            line.startswith("traces_span_metrics_calls_total")
            and 'towline_run_type="review"' in line
            and 'gen_ai_request_model="model-x"' in line
            and float(line.rpartition(" ")[2]) >= 1
            for line in collector.metrics().splitlines()
        )

    eventually(counted, collector.metrics())
    assert PROMPT not in collector.metrics()


def test_the_query_that_scales_workers_finds_what_they_send_by_way_of_the_collector(
    collector: CollectorPart, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scraped from the pods themselves, metrics have the label `namespace` of Prometheus's own discovery."""
    kubernetes = DEPLOY / "kubernetes"
    base = yaml.safe_load((kubernetes / "base" / "kustomization.yaml").read_text())
    settings = dict(line.split("=", 1) for line in base["configMapGenerator"][0]["literals"])
    scaled = yaml.safe_load((kubernetes / "overlays" / "azure" / "scaling.yaml").read_text())
    query = scaled["spec"]["triggers"][0]["metadata"]["query"]
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", settings.get("OTEL_RESOURCE_ATTRIBUTES", ""))
    exporter = OTLPMetricExporter(endpoint=f"http://127.0.0.1:{collector.http}/v1/metrics")
    reader = PeriodicExportingMetricReader(exporter)
    provider = MeterProvider([reader], resource=Resource.create({"service.name": "towline-worker"}))
    provider.get_meter("test").create_gauge("towline.worker.in_hand").set(7)
    provider.shutdown()

    [line] = eventually(
        lambda: [
            line for line in collector.metrics().splitlines() if line.startswith("towline_worker_in_hand{")
        ]
    )
    labels = set(re.findall(r'\w+="[^"]*"', line))
    wanted = [set(re.findall(r'\w+="[^"]*"', selector)) for selector in re.findall(r"{(.*?)}", query)]
    assert any(each <= labels for each in wanted), line
    assert {f'namespace="{base["namespace"]}"'} in wanted
