"""End to end: Towline beside what one would write first, on the same machine in one go.

    python benchmarks/run.py [--short] [--system NAME …] [--out FOLDER]

Every system gets a Kafka of its own, does the same job with the same agent (see `end_to_end/job.py`), and
every answer is checked. Systems take turns within a workload, so that both meet the same load of others.
Writes ``end_to_end.json`` and ``end_to_end.md``; exits with 1 if an answer was lost, came twice or was wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":  # `python benchmarks/run.py` puts its own folder on the path, not the root
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.end_to_end import report
from benchmarks.end_to_end.processes import rss_mb
from benchmarks.end_to_end.systems import SYSTEMS, System
from benchmarks.end_to_end.workloads import Load, Measured, approvals, at_once, load, one_in_flight, warm_up

Workload = Callable[[Load, int], Awaitable[Measured]]


@dataclass(frozen=True, slots=True)
class Series:
    """Workloads on systems whose model takes `model_ms`."""

    model_ms: int
    workloads: Sequence[tuple[Workload, int]]


FULL = (
    Series(0, ((one_in_flight, 200), (at_once, 1_000), (approvals, 300))),
    Series(500, ((at_once, 500),)),
)
SHORT = (
    Series(0, ((one_in_flight, 50), (at_once, 300), (approvals, 100))),
    Series(500, ((at_once, 100),)),
)


def main() -> int:
    """Measure, print, write."""
    arguments = _arguments()
    measured: list[Measured] = []
    at_rest: dict[str, dict[str, float]] = {}
    names: list[str] = arguments.system or list(SYSTEMS)
    for series in SHORT if arguments.short else FULL:
        for name in names:
            with SYSTEMS[name](series.model_ms) as system:
                at_rest.setdefault(name, {n: rss_mb(pid) for n, pid in system.processes.items()})
                measured += asyncio.run(_measure(system, series.workloads))
    measured.sort(key=lambda one: (one.model_ms, one.workload))
    report.write(arguments.out, measured, at_rest, [SYSTEMS[name] for name in names])
    print((arguments.out / "end_to_end.md").read_text())
    return 1 if any(one.lost or one.duplicates or one.wrong for one in measured) else 0


async def _measure(system: System, workloads: Sequence[tuple[Workload, int]]) -> list[Measured]:
    measured: list[Measured] = []
    async with load(system) as generator:
        await warm_up(generator)
        for workload, runs in workloads:
            one = await workload(generator, runs)
            measured.append(one)
            print(
                f"{one.system}: {one.workload}: {one.runs_per_s:.0f}/s, {one.own_cpu_ms_per_run:.2f} ms",
                flush=True,
            )
    return measured


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--short", action="store_true", help="fewer runs")
    parser.add_argument("--system", action="append", choices=list(SYSTEMS), help="only this one; repeatable")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder for the results")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
