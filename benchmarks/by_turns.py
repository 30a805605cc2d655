"""Systems or checkouts of Towline beside each other, a run of each by turns: how long a run alone takes.

    python benchmarks/by_turns.py --runs 600 towline towline-core restate-tuned
    python benchmarks/by_turns.py --runs 600 old=../old new=. also-new=. also-old=../old [--core]

Blocks of runs, as `run.py` measures, drift with the machine by more than most differences. Run by run, or
with `--burst 10` ten of each at a time (each turn's median counts), the same drift meets all, in an order
drawn anew each time. Which stack was started when is worth up to 4 %: name both checkouts twice, there and
back. Prints p50, its ratio to the last one's with the error of that (bootstrap over pairs), and CPU a run by
process.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import statistics
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

if __name__ == "__main__":  # `python benchmarks/by_turns.py` puts its own folder on the path, not the root
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.end_to_end.campaigns import kafka, started
from benchmarks.end_to_end.job import message
from benchmarks.end_to_end.load import Load
from benchmarks.end_to_end.processes import cpu_ms
from benchmarks.end_to_end.systems import SYSTEMS
from benchmarks.end_to_end.workloads import one_in_flight

_WARM_UP: Final = 300
_PAUSE_S: Final = 0.004
"""Between two runs: what the last one left to do, its reports and offsets, is not the next one's time."""
_RESAMPLES: Final = 400


@dataclass(frozen=True, slots=True)
class _Contender:
    name: str
    system: str
    checkout: Path | None
    """Whose code Towline's processes run; None: this one's."""


def main() -> int:
    """Measure and print."""
    arguments = _arguments()
    try:
        contenders = [_contender(given, core=arguments.core) for given in arguments.contenders]
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    if len({contender.name for contender in contenders}) < len(contenders):
        print("each contender needs a name of its own: NAME=FOLDER", file=sys.stderr)
        return 2
    asyncio.run(_measure(contenders, arguments.runs // arguments.burst, arguments.burst))
    return 0


def _contender(given: str, *, core: bool) -> _Contender:
    """What an argument names.

    Raises:
        ValueError: Neither a system nor a checkout, or a system that is not installed.
    """
    name, separator, folder = given.partition("=")
    if separator:
        checkout = Path(folder).resolve()
        if not (checkout / "services" / "towline").is_dir():
            raise ValueError(f"{given}: expected NAME=FOLDER, the folder of a checkout of Towline")
        return _Contender(name, "towline-core" if core else "towline", checkout)
    if name not in SYSTEMS:
        raise ValueError(f"{given}: expected NAME=FOLDER or one of {', '.join(SYSTEMS)}")
    if (reason := SYSTEMS[name].missing()) is not None:
        raise ValueError(f"{given}: {reason}")
    return _Contender(name, name, None)


async def _measure(contenders: Sequence[_Contender], turns: int, burst: int) -> None:
    async with AsyncExitStack() as stack:
        at = await stack.enter_async_context(kafka())
        loads: dict[str, Load] = {}
        for each in contenders:
            with code_of(each.checkout):
                stack_of_it = started(each.system, at, tag=f"{each.name}.", warm_up_runs=_WARM_UP)
                loads[each.name] = await stack.enter_async_context(stack_of_it)
        before = {name: _cpu(generator) for name, generator in loads.items()}
        took: dict[str, list[float]] = {name: [] for name in loads}
        drawn = random.Random(1)
        for number in range(turns):
            # To and fro would space the middle one's runs evenly and bring the outer ones' in pairs.
            for name, generator in drawn.sample(list(loads.items()), len(loads)):
                took[name].append(statistics.median([await _one(generator, number) for _ in range(burst)]))
                await asyncio.sleep(_PAUSE_S)
        last = list(took.values())[-1]
        for name, generator in loads.items():
            runs = turns * burst
            used = {part: (ms - before[name][part]) / runs for part, ms in _cpu(generator).items()}
            ratio, error = ratio_of_medians(took[name], last)
            parts = ", ".join(f"{part} {ms:.2f}" for part, ms in used.items())
            p50_ms = statistics.median(took[name]) * 1000
            print(f"{name}: p50 {p50_ms:.2f} ms, ratio {ratio:.3f} ± {error:.3f}; CPU ms a run: {parts}")


async def _one(generator: Load, number: int) -> float:
    """Seconds from handing a request over to reading its outcome."""
    messages = {f"turn-{time.time_ns()}": message(0, number)}
    work = await one_in_flight(generator, messages)
    if any(found := generator.check(messages)):
        raise RuntimeError(f"{', '.join(messages)}: lost, duplicate, wrong: {found}")
    generator.forget(messages)
    return work.latencies[0]


def ratio_of_medians(these: Sequence[float], those: Sequence[float], *, seed: int = 1) -> tuple[float, float]:
    """Ratio of the medians of pairs, and its standard error by resampling the pairs."""
    drawn = random.Random(seed)
    pairs = list(zip(these, those, strict=True))
    ratios: list[float] = []
    for _ in range(_RESAMPLES):
        sample = drawn.choices(pairs, k=len(pairs))
        ratios.append(
            statistics.median(this for this, _ in sample) / statistics.median(that for _, that in sample)
        )
    return statistics.median(these) / statistics.median(those), statistics.stdev(ratios)


def _cpu(generator: Load) -> dict[str, float]:
    return {name: cpu_ms(pid) for name, pid in generator.system.processes.items()}


@contextmanager
def code_of(checkout: Path | None) -> Generator[None]:
    """Processes that are started meanwhile run the code of `checkout`; None: this one's."""
    if checkout is None:
        yield
        return
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(str(checkout / part) for part in ("services", "contracts"))
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "contenders",
        nargs="+",
        metavar="SYSTEM|NAME=FOLDER",
        help=f"what is compared with the last one: {', '.join(SYSTEMS)}, or checkouts of Towline",
    )
    parser.add_argument("--runs", type=int, default=600, help="of each; default 600")
    parser.add_argument("--burst", type=int, default=1, help="runs of one before it is the next one's turn")
    parser.add_argument("--core", action="store_true", help="checkouts without relay and Redis")
    arguments = parser.parse_args()
    if not 1 <= arguments.burst <= arguments.runs // 2:
        parser.error("--burst: from 1 to half of --runs")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
