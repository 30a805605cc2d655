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
