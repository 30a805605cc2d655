"""Approvals that wait and are all decided at once, beside as many plain runs at once, by turns on one stack.

    python benchmarks/resumed.py [--runs 2000] [--rounds 5] [--systems towline,towline-core]

A resumed run has a turn and an agent call before it, as a plain one has: it should go at no less than that
one's rate. Each system has the machine to itself. Which of the two comes first changes with each round.
Prints both rates, own CPU a run, and the mean ratio with its standard error.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
from pathlib import Path
from typing import Final

if __name__ == "__main__":  # `python benchmarks/resumed.py` puts its own folder on the path, not the root
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.end_to_end.campaigns import kafka, started
from benchmarks.end_to_end.load import Load
from benchmarks.end_to_end.workloads import Workload, at_once, measure, waiting_approvals

_WARM_UP: Final = 3_000


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=2_000, help="runs of each kind in a round (default 2000)")
    parser.add_argument("--rounds", type=int, default=5, help="default 5; at least 2")
    parser.add_argument("--systems", default="towline", help="by comma (default towline)")
    arguments = parser.parse_args()
    if arguments.rounds < 2 or arguments.runs < 1:
        parser.error("--rounds must be at least 2, for an error to be told, and --runs at least 1")
    asyncio.run(_measure(arguments.systems.split(","), arguments.runs, arguments.rounds))
    return 0


async def _measure(systems: list[str], runs: int, rounds: int) -> None:
    async with kafka() as at:
        for system in systems:
            async with started(system, at, warm_up_runs=_WARM_UP) as generator:
                ratios = [await _round(generator, runs, number) for number in range(rounds)]
            error = statistics.stdev(ratios) / len(ratios) ** 0.5
            print(
                f"{system}: {statistics.mean(ratios):.3f} ± {error:.3f} of the rate of plain runs", flush=True
            )


async def _round(generator: Load, runs: int, number: int) -> float:
    """Rate of resumed runs, divided by that of plain ones."""
    resumed = Workload("waiting approvals", runs, 0, waiting_approvals)
    plain = Workload("at once", runs, 0, at_once)
    rates: dict[str, float] = {}
    for workload in (resumed, plain) if number % 2 else (plain, resumed):
        row = await measure(generator, workload, str(number))
        if row.lost or row.duplicates or row.wrong:
            raise RuntimeError(
                f"{workload.name}: lost {row.lost}, duplicate {row.duplicates}, wrong {row.wrong}"
            )
        rates[workload.name] = row.runs_per_s
        used_ms = row.facts.get("resuming_ms", row.own_cpu_ms_per_run)
        print(
            f"{generator.system.name} {number}: {workload.name}: {row.runs_per_s:.0f} runs/s, own CPU "
            f"{used_ms:.2f} ms a run, yardstick {row.yardstick_ms:.2f} ms",
            flush=True,
        )
    return rates[resumed.name] / rates[plain.name]


if __name__ == "__main__":
    sys.exit(main())
