"""Processes that the scheduler suites start: servers on a port that survives a restart, and others."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, Self

import grpc
from durabletask.internal.orchestrator_service_pb2_grpc import TaskHubSidecarServiceStub
from google.protobuf import empty_pb2
from tests.waiting import eventually

from towline.dev import ports

ROOT: Final = Path(__file__).resolve().parents[2]


def cpu_s(pid: int) -> float:
    """User and system time that a process has used, with all its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class ServerProcess:
    """A scheduler in its own process, on a loopback port that survives a restart.

    ``command`` is the program with its options, without address and data folder. Not safe for concurrent use.
    """

    def __init__(
        self, data: Path, *, command: Sequence[str] | None = None, options: Sequence[str] = ()
    ) -> None:
        self.data = data
        self.command = tuple(command) if command is not None else scheduler_command()
        self.options = tuple(options)
        self.port = 0
        self.starts_s: list[float] = []
        self.starts_cpu_s: list[float] = []
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def log(self) -> str:
        path = self.data.with_suffix(".log")
        return path.read_text(errors="replace") if path.exists() else ""

    def launch(self) -> subprocess.Popen[bytes]:
        """Start the process without waiting for it to serve."""
        self.data.parent.mkdir(parents=True, exist_ok=True)
        # Not one of the kernel's choice: while the server is down, a client's connection could be given it.
        self.port = self.port or ports.lease()
        port_file = self.data.with_suffix(".port")
        port_file.unlink(missing_ok=True)
        with self.data.with_suffix(".log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *self.command,
                    *("--data", str(self.data)),
                    *("--listen", f"127.0.0.1:{self.port}"),
                    *("--port-file", str(port_file)),
                    *self.options,
                ],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        return self._process

    def start(self, *, timeout_s: float = 30.0) -> None:
        began = time.time()
        process = self.launch()
        port_file = self.data.with_suffix(".port")

        def listening() -> int:
            if process.poll() is not None:
                raise AssertionError(f"the server ended with {process.returncode}:\n{self.log[-4000:]}")
            text = port_file.read_text().strip() if port_file.exists() else ""
            return int(text.rpartition(":")[2]) if text else 0

        self.port = eventually(listening, "the server listens", timeout_s=timeout_s, every_s=0.005)
        with grpc.insecure_channel(self.address) as channel:
            stub = TaskHubSidecarServiceStub(channel)
            stub.Hello(empty_pb2.Empty(), wait_for_ready=True, timeout=timeout_s)
        # By the file's own time: this process may have been too busy to look.
        self.starts_s.append(port_file.stat().st_mtime - began)
        self.starts_cpu_s.append(cpu_s(process.pid))

    def kill(self) -> None:
        """SIGKILL: what a power cut looks like to everything above the file system."""
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """SIGTERM, and SIGKILL when that does not end it. Returns the exit status."""
        return self._end(signal.SIGTERM)

    def restart(self) -> None:
        self.kill()
        self.start()

    def _end(self, number: signal.Signals) -> int:
        process, self._process = self._process, None
        if process is None:
            return 0
        if process.poll() is None:
            process.send_signal(number)
        try:
            return process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait(10)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def scheduler_command() -> tuple[str, ...]:
    """The server under test; ``TOWLINE_CONFORMANCE_BACKEND=memory`` shows that the suite can fail."""
    if on_memory_backend():
        return (sys.executable, "-m", "tests.conformance.memory_backend")
    return (sys.executable, "-m", "towline.scheduler")


def on_memory_backend() -> bool:
    return os.environ.get("TOWLINE_CONFORMANCE_BACKEND") == "memory"


@contextlib.contextmanager
def python_process(module: str, *arguments: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Another Python program of the suite (a worker to be killed, say), ended on the way out."""
    with log.open("ab") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait(10)


def loopback_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
