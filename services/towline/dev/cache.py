"""The user's cache folder, shared by every process that starts a stack."""

from __future__ import annotations

import fcntl
import logging
import os
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from towline.dev.errors import DistributionError

logger = logging.getLogger(__name__)

LOCK_TIMEOUT_S: Final = 600.0
"""How long to wait for another process that fills the cache."""
_LOCK_POLL_S: Final = 0.1


def cache_folder() -> Path:
    """``TOWLINE_CACHE_DIR``, else ``XDG_CACHE_HOME/towline``, else ``~/.cache/towline``."""
    if own := os.environ.get("TOWLINE_CACHE_DIR"):
        return Path(own).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base).expanduser() if base else Path.home() / ".cache").absolute() / "towline"


@contextmanager
def locked(path: Path) -> Generator[None]:
    """Hold the lock file `path`; the kernel releases it if this process dies.

    Raises:
        DistributionError: Another process held it for longer than `LOCK_TIMEOUT_S`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline, told = time.monotonic() + LOCK_TIMEOUT_S, False
    with path.open("ab") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise DistributionError(
                        f"another process has been filling {path.parent} for {LOCK_TIMEOUT_S:g} s: stop it"
                    ) from None
            if not told:
                logger.info("cache.waiting", extra={"lock": str(path)})
                told = True
            time.sleep(_LOCK_POLL_S)
        yield
