"""What one commit sends over a connection leaves in one piece.

A commit is followed by the answers to those who waited for it and by the work that it made, a message each.
gRPC's core writes each by itself, and each wakes the other side: a worker's threads then take turns at its
interpreter. So a connection is corked (``TCP_CORK``, tcp(7)) from a commit until what follows from it is
written. Measured in docs/decisions/0011-corked-connections.md.

The core does not give its sockets away: they are found among the process's open files by the address of the
other side. Where that can't be done (no Linux, no ``/proc``, a Unix socket), messages leave one by one.
"""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Final

_FILES: Final = "/proc/self/fd"
_LONGEST_S: Final = 0.002
"""Time after which a connection is let go although its messages are not all written: it takes no more now."""


class Connection:
    """A connection that can be corked. From the loop, but for `written`."""

    def __init__(self, shared: socket.socket) -> None:
        self._socket = shared
        self._lock = threading.Lock()
        self._corked = False
        self._held = False
        self._writing = 0

    def hold(self) -> bool:
        """Keep what is sent from now on until `release`.

        Returns:
            Whether it was not held before.
        """
        with self._lock:
            if self._held:
                return False
            self._held = True
            if not self._corked:
                self._corked = self._set(1)
            return True

    def write(self) -> None:
        """A series of messages begins, which other threads may go on with: it is kept together too."""
        with self._lock:
            self._writing += 1

    def written(self) -> None:
        """The series has ended. From any thread."""
        with self._lock:
            self._writing -= 1
            if not self._held and not self._writing:
                self._let_go()

    def release(self) -> bool:
        """Send what was kept, if no series is under way.

        Returns:
            Whether it was sent.
        """
        with self._lock:
            self._held = False
            if not self._writing:
                self._let_go()
            return not self._corked

    def let_go(self) -> None:
        """Send what was kept, whatever is under way."""
        with self._lock:
            self._let_go()

    def _let_go(self) -> None:
        if self._corked:
            self._corked = False
            self._set(0)

    def _set(self, value: int) -> bool:
        with suppress(OSError):  # the connection is gone, and its calls with it
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, value)
            return True
        return False

    @property
    def connected(self) -> bool:
        """Whether the other side is there."""
        return _peer_of(self._socket) is not None

    @property
    def file(self) -> int:
        """Number of the open file."""
        return self._socket.fileno()

    def close(self) -> None:
        """Give the socket back. The connection itself is the core's."""
        self._socket.close()


class Corks:
    """The connections that carried more than one message after some commit."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._usable = hasattr(socket, "TCP_CORK") and os.path.isdir(_FILES)
        self._holding = False
        self._known: dict[bytes, Connection | None] = {}
        self._once: set[bytes] = set()
        """Peers not known that had a message since the commit."""
        self._held: list[Connection] = []

    def hold(self) -> None:
        """A commit has ended: keep together what follows from it."""
        if self._usable and not self._holding:
            self._holding = True
            # What becomes runnable now is written in the next pass of the loop.
            self._loop.call_soon(self._loop.call_soon, self._release)

    def before(self, peer: Callable[[], bytes]) -> Connection | None:
        """A message is about to be written to ``peer``.

        Returns:
            Its connection, if it is held.
        """
        if not self._holding:
            return None
        name = peer()
        if name in self._known:
            connection = self._known[name]
        elif name not in self._once:
            # Most who call send one call at a time: nothing to keep together, and no search worth while.
            self._once.add(name)
            return None
        else:
            connection = self._find(name)
        if connection is not None and connection.hold():
            self._held.append(connection)
        return connection

    def _release(self) -> None:
        self._holding = False
        self._once.clear()
        held, self._held = self._held, []
        for connection in held:
            if not connection.release():
                self._loop.call_later(_LONGEST_S, connection.let_go)

    def _find(self, name: bytes) -> Connection | None:
        for peer, connection in list(self._known.items()):
            if connection is None or not connection.connected:
                del self._known[peer]
                if connection is not None:
                    connection.close()
        ours = {connection.file for connection in self._known.values() if connection is not None}
        self._known[name] = found = next((Connection(candidate) for candidate in _sockets(ours, name)), None)
        return found

    def close(self) -> None:
        """Give the sockets back."""
        self._usable = False
        self._release()
        for connection in self._known.values():
            if connection is not None:
                connection.let_go()
                connection.close()
        self._known.clear()


def _sockets(but: set[int], peer: bytes) -> Iterator[socket.socket]:
    """Duplicates of this process's sockets that are connected with ``peer``, as gRPC writes it."""
    for name in os.listdir(_FILES):
        file = int(name)
        with suppress(OSError):  # closed meanwhile: the folder's own file at least
            if file in but or not stat.S_ISSOCK(os.fstat(file).st_mode):
                continue
            candidate = socket.socket(fileno=os.dup(file))
            if _peer_of(candidate) == peer:
                yield candidate
            else:
                candidate.close()


def _peer_of(connected: socket.socket) -> bytes | None:
    """The other side's address as gRPC writes it (`grpc_sockaddr_to_uri`), if it has one."""
    try:
        if connected.family == socket.AF_INET:
            host, port = connected.getpeername()
        elif connected.family == socket.AF_INET6:
            host, port, *_ = connected.getpeername()
        else:
            return None
    except OSError:
        return None
    host = host.removeprefix("::ffff:") if "." in host else host
    return (f"ipv6:%5B{host}%5D:{port}" if ":" in host else f"ipv4:{host}:{port}").encode()
