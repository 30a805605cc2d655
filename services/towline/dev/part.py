"""What all parts of the local stack have in common."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from towline.dev import ports
from towline.dev.errors import AddressInUseError, PartFailedError
from towline.dev.process import Child, LineSink, PidFile

READY_POLL_S: Final = 0.02
PROBE_TIMEOUT_S: Final = 1.0
"""Bound of one readiness probe."""


class Part(ABC):
    """One process of the stack, with its data folder, addresses and readiness.

    For a single part: ``with KafkaPart(data=folder) as kafka: …``, or `start`, `kill`, `stop`; a
    stopped or killed part can be started again and has the same addresses and data. The supervisor
    uses the steps one by one: `prepare` (slow, any thread), `spawn`, then `probe` until true.
    Not safe for concurrent use, except that `probe` may run beside anything.
    """

    ready_timeout_s: float = 30.0
    """How long `start` waits for readiness."""

    def __init__(self, name: str, *, data: Path, sink: LineSink | None = None) -> None:
        """Make it, without starting it.

        Args:
            name: Label in the log.
            data: Folder of this part alone; made if it does not exist.
            sink: Takes the part's output; by default it is appended to ``data/log``.
        """
        self.name = name
        self.data = data
        self._sink = sink if sink is not None else self._append_to_log
        self._child: Child | None = None

    @property
    @abstractmethod
    def addresses(self) -> Mapping[str, str]:
        """The `TOWLINE_*` variables by which other processes find this part."""

    @abstractmethod
    def command(self) -> Sequence[str]:
        """The command line. May write configuration files."""

    @abstractmethod
    def probe(self) -> bool:
        """Whether it serves now. Takes at most about `PROBE_TIMEOUT_S`; never raises."""

    def environment(self) -> Mapping[str, str] | None:
        """The child's whole environment; None: this process's."""
        return None

    def work_folder(self) -> Path | None:
        """Where the child is started; None: where this process was."""
        return None

    def own_ports(self) -> Sequence[int]:
        """Ports that it listens on; checked before each start."""
        return ()

    def prepare(self) -> None:
        """Slow work before the first start. Idempotent.

        Raises:
            DevError: Something that is needed is missing; the message names the fix.
        """
        self.data.mkdir(parents=True, exist_ok=True)
        self.pid_file.stop_leftover()

    def spawn(self) -> None:
        """Start the process and return at once.

        Raises:
            AddressInUseError: Another process listens on one of its ports.
        """
        for port in self.own_ports():
            if not ports.is_free(port):
                raise AddressInUseError(self.name, port)
        self._child = Child(
            self.name,
            self.command(),
            env=self.environment(),
            cwd=self.work_folder(),
            sink=self._sink,
            pid_file=self.pid_file,
        )

    @property
    def pid_file(self) -> PidFile:
        """Where the running process is recorded."""
        return PidFile(self.data / "pid")

    @property
    def pid(self) -> int:
        """Process id of the running part."""
        assert self._child is not None, f"{self.name} was not started"
        return self._child.pid

    @property
    def last_lines(self) -> tuple[str, ...]:
        """The last lines of output of the current or last process."""
        return () if self._child is None else tuple(self._child.last_lines)

    def exit_status(self) -> int | None:
        """None while it runs (or was never started), else the exit status."""
        return None if self._child is None else self._child.poll()

    @property
    def is_running(self) -> bool:
        """Whether there is a live process."""
        return self._child is not None and self._child.poll() is None

    def start(self) -> Self:
        """Prepare, spawn and wait until it serves.

        Raises:
            DevError: It ended or was not ready within `ready_timeout_s`, or something is missing.
        """
        self.prepare()
        self.spawn()
        try:
            self.wait_ready()
        except BaseException:
            self.kill()
            raise
        return self

    def wait_ready(self, timeout_s: float | None = None) -> None:
        """Wait until `probe` is true.

        Raises:
            PartFailedError: It ended, or the time is over.
        """
        timeout_s = self.ready_timeout_s if timeout_s is None else timeout_s
        deadline = time.monotonic() + timeout_s
        while not self.probe():
            if (status := self.exit_status()) is not None:
                raise PartFailedError(self.name, f"ended with status {status}", self.last_lines)
            if time.monotonic() > deadline:
                raise PartFailedError(self.name, f"was not ready after {timeout_s:g} s", self.last_lines)
            time.sleep(READY_POLL_S)
        # A stranger might have answered at the address while our own process was failing to bind.
        if (status := self.exit_status()) is not None:
            raise PartFailedError(self.name, f"ended with status {status}", self.last_lines)

    def terminate(self) -> None:
        """SIGTERM; does not wait."""
        if self._child is not None:
            self._child.terminate()

    def stop(self, *, timeout_s: float = 10.0) -> int | None:
        """SIGTERM, after `timeout_s` SIGKILL; the exit status. Idempotent."""
        return None if self._child is None else self._child.stop(timeout_s=timeout_s)

    def kill_now(self) -> None:
        """SIGKILL; does not wait."""
        if self._child is not None:
            self._child.kill()

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        if self._child is not None:
            self._child.kill()
            self._child.stop(timeout_s=5.0)

    def restart(self) -> None:
        """Stop cleanly and start again at the same addresses."""
        self.stop()
        self.start()

    def __enter__(self) -> Self:
        """Start it, unless it already runs."""
        return self if self.is_running else self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop it."""
        self.stop()

    def _append_to_log(self, name: str, line: str) -> None:
        del name
        with (self.data / "log").open("a", encoding="utf-8") as log:
            log.write(line + "\n")
