"""A pytest plugin for durabletask-python's own suites: its in-memory backend becomes a scheduler process.

Copied beside the suites by ``upstream.py`` and loaded with ``-p``; it imports nothing of this repository,
because the name ``tests`` belongs to the suites there. One process serves one port for the whole session; the
end of a test wipes its task hub, as ``reset`` of the in-memory backend does.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from pathlib import Path

import durabletask.testing
import grpc
from durabletask.internal import orchestrator_service_pb2 as pb
from durabletask.internal.orchestrator_service_pb2_grpc import TaskHubSidecarServiceStub
from google.protobuf import empty_pb2

_processes: dict[int, subprocess.Popen[bytes]] = {}


class ServedBackend:
    """Has the two methods that the suites' fixtures call."""

    def __init__(self, port: int) -> None:
        self._port = port
        if port not in _processes:
            _processes[port] = _launch(port)
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            TaskHubSidecarServiceStub(channel).Hello(empty_pb2.Empty(), wait_for_ready=True, timeout=30)

    def stop(self, grace: float | None = None) -> None:
        """Leave nothing of this test to the next."""
        with grpc.insecure_channel(f"127.0.0.1:{self._port}") as channel:
            stub = TaskHubSidecarServiceStub(channel)
            stub.DeleteTaskHub(pb.DeleteTaskHubRequest(), timeout=30)
            stub.CreateTaskHub(pb.CreateTaskHubRequest(recreateIfExists=True), timeout=30)

    def reset(self) -> None:
        """Done by ``stop``."""


def create_test_backend(port: int = 50051, max_history_size: int = 10000) -> ServedBackend:
    """Stands in for the SDK's function of this name."""
    return ServedBackend(port)


def pytest_configure() -> None:
    """Before the suites import the function by name."""
    durabletask.testing.create_test_backend = create_test_backend  # type: ignore[assignment]


def pytest_unconfigure() -> None:
    """Stop every server of the session, also after a failure."""
    for process in _processes.values():
        process.terminate()
    for process in _processes.values():
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)
    _processes.clear()


def _launch(port: int) -> subprocess.Popen[bytes]:
    folder = Path(tempfile.mkdtemp(prefix="server-", dir=os.environ["TOWLINE_UPSTREAM_DATA"]))
    port_file = folder / "port"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                *json.loads(os.environ["TOWLINE_UPSTREAM_SERVER"]),
                *("--data", str(folder / "data")),
                *("--listen", f"127.0.0.1:{port}"),
                *("--port-file", str(port_file)),
            ],
            cwd=os.environ["TOWLINE_UPSTREAM_ROOT"],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    deadline = time.monotonic() + 30
    while not (port_file.exists() and port_file.read_text().strip()):
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            raise RuntimeError(f"the server did not start: {(folder / 'log').read_text()[-4000:]}")
        time.sleep(0.01)
    return process
