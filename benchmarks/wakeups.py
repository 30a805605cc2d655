"""What a pause before a piece of work costs on this machine.

    python benchmarks/wakeups.py [--seconds 4]

One process runs one turn of the job's agent after the other, with pauses of a given length between batches of
a given size, and nothing else to do. Told is the CPU time of a turn. What grows with the pause is the
machine's: caches that others have filled meanwhile, a core that has to come back from its sleep. It is why a
steady load of runs, each of which wakes every process several times, costs more CPU a run than many at once.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from pathlib import Path

if __name__ == "__main__":  # `python benchmarks/wakeups.py` puts its own folder on the path, not the root
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.end_to_end.job import make_agent
from benchmarks.end_to_end.yardstick import turn

PAUSES_MS = ((0, 1), (1, 1), (10, 1), (50, 1), (50, 5), (200, 1), (200, 10))
"""Pause and number of turns between two of them."""
WARM_UP = 200


async def measure(seconds: float) -> None:
    """Print a table."""
    agent = make_agent()
    for _ in range(WARM_UP):
        await turn(agent)
    print("| pause, ms | turns after it | CPU a turn, ms |\n|---|---|---|")
    for pause_ms, count in PAUSES_MS:
        spent_s, turns, end = 0.0, 0, time.perf_counter() + seconds
        while time.perf_counter() < end:
            began = time.thread_time()
            for _ in range(count):
                await turn(agent)
            spent_s += time.thread_time() - began
            turns += count
            if pause_ms:
                await asyncio.sleep(pause_ms / 1000)
        print(f"| {pause_ms} | {count} | {1000 * spent_s / turns:.2f} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=4.0, help="for each pause")
    asyncio.run(measure(parser.parse_args().seconds))
