"""Temporal's development server, with a Python worker that consumes Kafka."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from benchmarks.end_to_end import installed
from benchmarks.end_to_end.systems.peer import Peer

from towline.dev import ports


class Temporal(Peer):
    """Two processes: the development server (one binary, SQLite), the worker."""

    name = "temporal"
    about = (
        "Temporal's development server on a SQLite file, its Python SDK; agent call and publish are "
        "activities, approvals a signal. Kafka is consumed by hand: it has no consumer."
    )
    durable = "every step (SQLite, as the development server sets it), Kafka offsets after the start"
    worker: ClassVar[Mapping[str, Any]] = {}
    """More of the worker's options."""

    @classmethod
    def missing(cls) -> str | None:
        if installed.temporal() is None:
            return f"Temporal's server is not installed: {installed.INSTALL_HINT}"
        if not installed.has_package("temporalio"):
            return f"temporalio is not installed: {installed.INSTALL_HINT}"
        return None

    def launch(self) -> None:
        binary = installed.temporal()
        assert binary is not None
        port, metrics = ports.lease(None), ports.lease(None)
        self.spawn(
            "server",
            [
                *(binary, "server", "start-dev", "--headless", "--ip", "127.0.0.1", "--port", str(port)),
                *("--metrics-port", str(metrics), "--log-level", "warn", "--log-format", "json"),
                *("--db-filename", str(self.data / "temporal.db")),
            ],
            ready=lambda: _serves(binary, port),
        )
        self.spawn_app(
            "worker",
            "temporal_app",
            python=installed.python(),
            env={"BENCH_TEMPORAL": f"127.0.0.1:{port}", "BENCH_TEMPORAL_WORKER": json.dumps(self.worker)},
        )


class TemporalTuned(Temporal):
    """By its worker performance guide: more pollers, more slots, a larger cache of sticky workflows."""

    name = "temporal-tuned"
    about = "As temporal, with 20 pollers of each kind, 1,000 slots and 5,000 cached workflows."
    worker: ClassVar = {
        "max_concurrent_workflow_tasks": 1_000,
        "max_concurrent_activities": 2_000,
        "max_concurrent_workflow_task_polls": 20,
        "max_concurrent_activity_task_polls": 20,
        "max_cached_workflows": 5_000,
    }


def _serves(binary: Path, port: int) -> bool:
    """Whether its default namespace, which it makes after it listens, is there."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1.0):
            pass
    except OSError:
        return False
    address = f"127.0.0.1:{port}"
    command = [binary, "operator", "namespace", "describe", "--address", address, "--namespace", "default"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0
