"""``python -m tests.chaos --minutes 30 --seed 1 --report DIR``: the long campaign."""

from __future__ import annotations

import argparse
import asyncio
import random
import shutil
import sys
import tempfile
from pathlib import Path

from tests.chaos import report
from tests.chaos.campaign import Plan, run, told
from tests.chaos.load import scenes
from tests.chaos.nemesis import Fleet, faults

_RUNS_PER_MINUTE = 180
_EVERY_S = 6.0


def main() -> int:
    """0: every promise was kept."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0, help="how long load and faults go on")
    parser.add_argument("--seed", type=int, default=None, help="default: another one each time, printed")
    parser.add_argument("--report", type=Path, default=Path("chaos-report"), help="folder of the report")
    asked = parser.parse_args()
    seed: int = random.randrange(1_000_000) if asked.seed is None else asked.seed
    plan = Plan(
        seed=seed,
        scenes=scenes(seed, max(12, round(_RUNS_PER_MINUTE * asked.minutes))),
        faults=faults(seed),
        faults_s=60 * asked.minutes,
        every_s=_EVERY_S,
        stopped_s=20.0,
        settle_s=300.0,
    )
    say(f"seed {seed}, {len(plan.scenes)} scenes within {asked.minutes:g} min, a fault every {_EVERY_S:g} s")
    folder = Path(tempfile.mkdtemp(prefix="towline-chaos-"))
    with Fleet.planned(folder, unknown_run_grace_s=30).running() as fleet:
        result = asyncio.run(run(fleet, plan, say))
    written = report.write(result, asked.report)
    say(told(result.verdict.violations))
    say("\n".join(result.problems))
    say(f"{len(result.verdict.violations)} violations, {len(result.problems)} problems; report: {written}")
    if result.is_good:
        shutil.rmtree(folder)
    else:
        say(f"data and logs of all parts are kept in {folder}")
    return 0 if result.is_good else 1


def say(line: str) -> None:
    """To whoever watches."""
    if line:
        print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
