"""The SDK's in-memory backend, in a process of its own."""

from __future__ import annotations

import logging
import os
import sys
import threading
from pathlib import Path

from durabletask.testing import create_test_backend


def main() -> None:
    """Serve until killed."""
    logging.basicConfig(level=logging.WARNING)
    create_test_backend(port=int(os.environ["BENCH_BACKEND_PORT"]), max_history_size=1_000_000)
    Path(sys.argv[1]).touch()
    threading.Event().wait()


if __name__ == "__main__":
    main()
