"""What a step of a long run costs: activities one after the other, on the whole of Towline.

    python benchmarks/long_runs.py [--steps 10 100 1000] [--bytes 2500] [--checkout ../old]

A step's cost should not grow with the steps before it. Prints milliseconds a step, and the CPU of scheduler
and worker. With `--checkout` the processes run another checkout's code; a run that fails is told with its
error.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

if __name__ == "__main__":  # `python benchmarks/long_runs.py` puts its own folder on the path, not the root
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.by_turns import code_of
from benchmarks.end_to_end.campaigns import up
from benchmarks.end_to_end.processes import cpu_ms

from towline.contracts.client import TowlineClient
from towline.contracts.errors import TowlineError
from towline.dev.stack import Stack, StackPlan

_WARM_UP: Final = 40
"""Steps: the first turns of an orchestrator in a process are replayed in any case."""


def text(_: Any, size: int) -> str:
    """So many bytes."""
    return "x" * size


def steps(ctx: Any, given: Any) -> Any:
    """The length of what all steps have brought."""
    total = 0
    for _ in range(given["count"]):
        total += len((yield ctx.call_activity("text", input=given["bytes"])))
    return total


def setup_worker(worker: Any) -> None:
    """The benchmark's own app."""
    worker.add_orchestrator(steps)
    worker.add_activity(text)


async def _measure(counts: list[int], size: int, checkout: Path | None) -> None:
    with tempfile.TemporaryDirectory(prefix="towline-bench-") as folder:
        plan = StackPlan(
            data=Path(folder),
            app="benchmarks.long_runs:setup_worker",
            given={},
            roles=("bridge", "worker"),
            settings={"TOWLINE_LOG_LEVEL": "WARNING"},
        )
        with code_of(checkout):
            stack = Stack(plan)
            async with up(stack), TowlineClient(stack.kafka) as client:
                pids = {part.name: part.pid for part in stack.parts if part.name in ("scheduler", "worker")}
                for count in (_WARM_UP, *counts):
                    before, began = {name: cpu_ms(pid) for name, pid in pids.items()}, time.perf_counter()
                    said = await _run(client, count, size)
                    took_ms = (time.perf_counter() - began) * 1000
                    used = (
                        f"{name} {(cpu_ms(pid) - before[name]) / count:.2f}" for name, pid in pids.items()
                    )
                    if count != _WARM_UP:
                        print(
                            f"{count} steps of {size} bytes: {said}; {took_ms / count:.2f} ms a step; "
                            f"CPU ms a step: {', '.join(used)}",
                            flush=True,
                        )


async def _run(client: TowlineClient, count: int, size: int) -> str:
    run = await client.start("steps", {"count": count, "bytes": size}, run_id=f"steps-{count}-{uuid4().hex}")
    try:
        output = await run.result()
    except TowlineError as error:
        return str(error)
    return "right" if output == count * size else f"wrong: {output}"


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, nargs="+", default=[10, 100, 1_000], help="of each run")
    parser.add_argument("--bytes", type=int, default=2_500, help="that a step brings")
    parser.add_argument("--checkout", type=Path, help="whose code the processes run")
    arguments = parser.parse_args()
    asyncio.run(_measure(arguments.steps, arguments.bytes, arguments.checkout))
    return 0


if __name__ == "__main__":
    sys.exit(main())
