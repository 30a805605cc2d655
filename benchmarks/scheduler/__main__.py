"""``python -m benchmarks.scheduler [--short] [--parts PART …]``.

Server, worker and client are three processes. Each measurement alternates between the servers that it
compares, so that other load on the machine meets all of them; what counts is the ratio.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import signal
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Final

from benchmarks.scheduler.bench import DURABLE, MEMORY, Bench, idle_percent, sync_ms
from benchmarks.scheduler.growth import measure_finished, measure_histories, measure_waiters
from benchmarks.scheduler.report import Report, markdown
from benchmarks.scheduler.shapes import measure_latencies, measure_shapes
from benchmarks.scheduler.starting import measure_start

PARTS: Final = ("shapes", "alone", "histories", "waiters", "finished", "start")
_STEPS: Final = (100, 1_000, 10_000, 100_000)
_WAITERS: Final = 1_000


def main() -> None:
    """Measure, print, and write JSON if asked to."""
    arguments = _arguments()
    # As by Ctrl-C: servers and workers are stopped.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    parts: list[str] = ["shapes"] if arguments.short else arguments.parts
    report = Report(
        {
            "cores": len(os.sched_getaffinity(0)),
            "python": platform.python_version(),
            "load": os.getloadavg()[0],
            "starters": arguments.starters,
            "worker_threads": arguments.worker_threads or len(os.sched_getaffinity(0)) + 4,
        }
    )
    with tempfile.TemporaryDirectory(prefix="towline-bench-") as name:
        folder = Path(name)
        report.machine["fdatasync_ms"] = sync_ms(folder)
        if {"shapes", "alone", "histories", "waiters"} & set(parts):
            _side_by_side(report, folder, parts, arguments)
        if "finished" in parts:
            steps = [step for step in _STEPS if step <= arguments.finished]
            report.finished = measure_finished(folder, steps, arguments.rounds, arguments.starters)
        if "start" in parts:
            report.figures |= measure_start(folder, arguments.start_mib, arguments.rounds)
    print(markdown(report))
    if arguments.json:
        arguments.json.write_text(json.dumps(asdict(report), indent=2) + "\n")


def _side_by_side(report: Report, folder: Path, parts: list[str], arguments: argparse.Namespace) -> None:
    def open_benches(exits: ExitStack, number: int) -> list[Bench]:
        return [
            Bench(name, folder / f"{name}-{number}", exits, arguments.starters, arguments.worker_threads)
            for name in (MEMORY, DURABLE)
        ]

    if "shapes" in parts:
        rounds, scale = (3, 0.3) if arguments.short else (arguments.rounds, 1.0)
        report.shapes, report.rate_ratios = measure_shapes(open_benches, rounds, scale, arguments.only)
    if not {"alone", "histories", "waiters"} & set(parts):
        return
    with ExitStack() as exits:
        benches = open_benches(exits, -1)
        durable = benches[1]
        if "alone" in parts:
            report.alone_ms = measure_latencies(benches, 3)
            for bench in benches:
                title = f"idle CPU with a worker connected, percent ({bench.name})"
                report.figures[title] = idle_percent(bench.server.pid, 5)
        if "histories" in parts:
            report.histories = measure_histories(benches, arguments.rounds)
        if "waiters" in parts:
            report.figures |= asyncio.run(measure_waiters(durable, _WAITERS))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scheduler", description=__doc__)
    parser.add_argument("--short", action="store_true", help="half a minute: the shapes only, fewer runs")
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=", ".join(PARTS)
    )
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="SHAPE", help="shapes by their first word: ten, twenty, …"
    )
    parser.add_argument("--rounds", type=int, default=5, help="bursts (or starts) on each server")
    parser.add_argument(
        "--starters", type=int, default=4, help="threads that start runs: each waits for the server's commit"
    )
    parser.add_argument(
        "--worker-threads", type=int, metavar="N", help="of the worker; default: the SDK's, processors + 4"
    )
    parser.add_argument(
        "--finished", type=int, default=100_000, metavar="N", help="at most so many finished instances"
    )
    parser.add_argument(
        "--start-mib", type=int, default=1024, metavar="N", help="size of the file started on"
    )
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser.parse_args()


if __name__ == "__main__":
    main()
