"""Ports that stay ours.

A part that is started again must get its old port back. Two things could take it meanwhile: another
stack of the same user (each port in use is leased by a lock file, released by the kernel when the
process dies), and the kernel itself, for an outgoing connection (so ports are chosen below the
usual ephemeral ranges).
"""

from __future__ import annotations

import fcntl
import os
import random
import socket
import tempfile
from pathlib import Path
from typing import Final

LOWEST_PORT: Final = 20_000
HIGHEST_PORT: Final = 32_000
_TRIES: Final = 200

# Descriptors, not files: they are meant to stay open until the process ends.
_leases: dict[int, int] = {}


def is_free(port: int) -> bool:
    """Whether 127.0.0.1:`port` can be listened on now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
            probe.listen(1)
        except OSError:
            return False
    return True


def lease(preferred: int | None = None) -> int:
    """A port of 127.0.0.1 for this process's life: `preferred` if it is free, else any.

    Raises:
        OSError: None of many tried ports was free.
    """
    candidates = [] if preferred is None else [preferred]
    # Not for security; a fixed sequence would make parallel stacks collide on every try.
    candidates += random.sample(range(LOWEST_PORT, HIGHEST_PORT), _TRIES)
    for port in candidates:
        if _take(port):
            if is_free(port):
                return port
            release(port)
    raise OSError(f"no free port on 127.0.0.1 among {_TRIES} of {LOWEST_PORT}-{HIGHEST_PORT}")


def release(port: int) -> None:
    """Give a leased port back. Does nothing for one that is not leased."""
    lock = _leases.pop(port, None)
    if lock is not None:
        os.close(lock)


def _take(port: int) -> bool:
    if port in _leases:
        return False
    folder = Path(tempfile.gettempdir()) / f"towline-ports-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    lock = os.open(folder / str(port), os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        return False
    _leases[port] = lock
    return True
