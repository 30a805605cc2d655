"""Towline's own processes: started with the command lines of production."""

from __future__ import annotations

import http.client
import os
import socket
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Final

from towline.dev import ports
from towline.dev.part import PROBE_TIMEOUT_S, Part
from towline.dev.process import LineSink

TOWLINE: tuple[str, ...] = (sys.executable, "-m", "towline.cli")
"""`towline`, in this process's environment."""
_SCHEDULER_TLS: Final = frozenset({"TOWLINE_SCHEDULER_TLS_CERT", "TOWLINE_SCHEDULER_TLS_KEY"})


class SchedulerPart(Part):
    """``towline scheduler``: the durable scheduler on SQLite."""

    def __init__(
        self,
        *,
        data: Path,
        port: int | None = None,
        sink: LineSink | None = None,
        options: Sequence[str] = (),
    ) -> None:
        """As `KafkaPart`'s; `options` are added to the command line."""
        super().__init__("scheduler", data=data.absolute(), sink=sink)
        self.port = ports.lease(port)
        self._options = tuple(options)

    @property
    def address(self) -> str:
        """As `TOWLINE_SCHEDULER_ADDRESS` wants it."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def addresses(self) -> Mapping[str, str]:
        """`TOWLINE_SCHEDULER_ADDRESS`."""
        return {"TOWLINE_SCHEDULER_ADDRESS": self.address}

    def own_ports(self) -> Sequence[int]:
        """The one."""
        return (self.port,)

    def environment(self) -> Mapping[str, str]:
        """This process's, without a certificate: it is reached in plain text, on this machine only."""
        return {name: value for name, value in os.environ.items() if name not in _SCHEDULER_TLS}

    def command(self) -> Sequence[str]:
        """``towline scheduler``."""
        self._port_file.unlink(missing_ok=True)
        return [
            *TOWLINE,
            "scheduler",
            *("--data", str(self.data / "data")),
            *("--listen", f"127.0.0.1:{self.port}"),
            *("--port-file", str(self._port_file)),
            *self._options,
        ]

    def probe(self) -> bool:
        """Whether it has written its port file, which it does once it serves, and takes connections."""
        if not self._port_file.exists():
            return False
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=PROBE_TIMEOUT_S).close()
        except OSError:
            return False
        return self.is_running

    @property
    def _port_file(self) -> Path:
        return self.data / "port"


class ProcessPart(Part):
    """One of ``towline bridge``, ``worker``, ``relay``; ready when ``/readyz`` says so.

    Its HTTP address is given by ``TOWLINE_<ROLE>_HTTP_LISTEN``.
    """

    # Not ready also while a neighbour is away, which is no reason to start it again.
    ready_timeout_s = 90.0

    def __init__(
        self,
        role: str,
        *,
        data: Path,
        env: Mapping[str, str],
        options: Sequence[str] = (),
        port: int | None = None,
        name: str | None = None,
        sink: LineSink | None = None,
        without: Collection[str] = (),
    ) -> None:
        """Make it, without starting it.

        Args:
            role: Subcommand of `towline`.
            data: Folder for log and pid file; the process itself keeps nothing there.
            env: Settings added to this process's environment: the neighbours' addresses.
            options: More arguments, for example ``--app``.
            port: Wanted HTTP port; default: any free one.
            name: Label; default: the role. Replicas need different ones.
            sink: See `Part`.
            without: Variables of this process's environment that are not passed on, in capitals.
        """
        super().__init__(name or role, data=data.absolute(), sink=sink)
        self.role = role
        self.port = ports.lease(port)
        self._env = dict(env)
        self._options = tuple(options)
        self._without = frozenset(without)

    @property
    def url(self) -> str:
        """Base of its HTTP addresses."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def addresses(self) -> Mapping[str, str]:
        """`TOWLINE_RELAY_URL` of a relay, else nothing."""
        return {"TOWLINE_RELAY_URL": self.url} if self.role == "relay" else {}

    def own_ports(self) -> Sequence[int]:
        """The one."""
        return (self.port,)

    def environment(self) -> Mapping[str, str]:
        """This process's, with the settings."""
        return {
            # Settings are read whatever the case of their names.
            **{name: value for name, value in os.environ.items() if name.upper() not in self._without},
            "PYTHONUNBUFFERED": "1",
            f"TOWLINE_{self.role.upper()}_HTTP_LISTEN": f"127.0.0.1:{self.port}",
            **self._env,
        }

    def command(self) -> Sequence[str]:
        """``towline <role>``."""
        return [*TOWLINE, self.role, *self._options]

    def probe(self) -> bool:
        """Whether ``/readyz`` answers 200 and our process lives."""
        return get_status(self.port, "/readyz") == http.client.OK and self.is_running


def get_status(port: int, path: str) -> int | None:
    """The HTTP status of GET `path` on 127.0.0.1, or None if there is no answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PROBE_TIMEOUT_S)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
