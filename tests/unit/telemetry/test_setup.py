"""A role's telemetry as the standard variables set it up, and its end."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Generator

import pytest

from towline.telemetry import setup

_ROLE = """
import time
from opentelemetry import metrics, trace
from towline.telemetry import set_up
with set_up("towline-test"):
    with trace.get_tracer("test").start_as_current_span("span"):
        metrics.get_meter("test").create_counter("measure").add(1)
    began = time.monotonic()
print(time.monotonic() - began)
"""


@pytest.fixture
def hanging_collector() -> Generator[str]:
    """A collector that takes connections and never answers; its endpoint."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        taken: list[socket.socket] = []

        def take() -> None:
            while True:
                try:
                    taken.append(listening.accept()[0])
                except OSError:
                    return

        thread = threading.Thread(target=take)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        listening.shutdown(socket.SHUT_RDWR)
        thread.join()
        for connection in taken:
            connection.close()


def test_a_collector_that_hangs_delays_the_end_once_and_not_once_a_signal(hanging_collector: str) -> None:
    environment = {**os.environ, "OTEL_EXPORTER_OTLP_ENDPOINT": hanging_collector}
    done = subprocess.run(
        [sys.executable, "-c", _ROLE], env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    assert float(done.stdout) < 3.5, "traces and metrics have two seconds each, at the same time"


@pytest.mark.parametrize(
    ("exporter", "exports"),
    [(None, True), ("", True), ("otlp", True), ("console, otlp", True), ("none", False), ("console", False)],
)
def test_an_endpoint_is_used_unless_another_exporter_is_chosen(
    monkeypatch: pytest.MonkeyPatch, exporter: str | None, exports: bool
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    if exporter is None:
        monkeypatch.delenv("OTEL_TRACES_EXPORTER", raising=False)
    else:
        monkeypatch.setenv("OTEL_TRACES_EXPORTER", exporter)
    assert setup._exports("TRACES") is exports  # pyright: ignore[reportPrivateUsage]


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("OTEL_BSP_MAX_QUEUE_SIZE", "10", "max_export_batch_size"),
        ("OTEL_METRICS_EXEMPLAR_FILTER", "some", "'some'"),
    ],
)
def test_a_standard_variable_that_cannot_be_used_is_one_line_and_status_2(
    variable: str, value: str, said: str
) -> None:
    done = _set_up({variable: value})
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert said in done.stderr


@pytest.mark.parametrize("role", ["relay", "bridge", "worker"])
def test_a_variable_that_is_read_as_the_sdk_is_imported_is_one_line_and_status_2_too(role: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "towline.cli", role],
        env={**os.environ, "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": "lots"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT must be a non-negative integer but got lots" in done.stderr


@pytest.mark.parametrize(
    "variable", ["OTEL_METRICS_EXEMPLAR_FILTER", "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "OTEL_TRACES_EXPORTER"]
)
def test_an_empty_variable_is_as_good_as_none(variable: str) -> None:
    done = _set_up({variable: ""})
    assert done.returncode == 0, done.stderr


def test_another_protocol_than_the_one_there_is_is_told() -> None:
    done = _set_up({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", "OTEL_EXPORTER_OTLP_METRICS_PROTOCOL": ""})
    told = [line for line in done.stderr.splitlines() if '"otlp_protocol_unknown"' in line]
    assert len(told) == 2, "once for each signal"
    assert all('"value": "grpc", "used": "http/protobuf"' in line for line in told)
    assert "otlp_protocol_unknown" not in _set_up({"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}).stderr


def _set_up(variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", _ROLE],
        env={**os.environ, "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
