"""The SDK's in-memory backend in a process of its own, with the options of our server.

The suites run against it to show that they can fail, the benchmarks to have something to compare with.
"""

from __future__ import annotations

import argparse
import signal
import threading
from pathlib import Path

from durabletask.testing import create_test_backend
from tests.conformance.processes import loopback_port


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="ignored: nothing is kept")
    parser.add_argument("--listen", default="127.0.0.1:0")
    parser.add_argument("--port-file", type=Path)
    parser.add_argument("--max-history-size", type=int, default=1_000_000)
    arguments, _ = parser.parse_known_args()
    port = int(arguments.listen.rpartition(":")[2]) or loopback_port()
    backend = create_test_backend(port=port, max_history_size=arguments.max_history_size)
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    if arguments.port_file is not None:
        arguments.port_file.write_text(f"{port}\n")
    stopped.wait()
    backend.stop()


if __name__ == "__main__":
    main()
