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
from tests.chaos.load import EACH_ONCE as RUNS_OF_EACH_ONCE
from tests.chaos.load import scenes
from tests.chaos.nemesis import EACH_ONCE, Fleet, faults

_RUNS_PER_MINUTE = 180
_EVERY_S = 6.0


def main() -> int:
    """0: every promise was kept."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0, help="how long load and faults go on")
    parser.add_argument(
        "--scenario",
        choices=["mixed", "each-once"],
        default="mixed",
        help="each-once: 200 runs in flight, each part killed once, then all at once",
    )
    parser.add_argument("--seed", type=int, default=None, help="default: another one each time, printed")
    parser.add_argument("--report", type=Path, default=Path("chaos-report"), help="folder of the report")
    asked = parser.parse_args()
    seed: int = random.randrange(1_000_000) if asked.seed is None else asked.seed
    plan = each_once(seed) if asked.scenario == "each-once" else mixed(seed, asked.minutes)
    say(f"seed {seed}, {len(plan.scenes)} scenes, a fault every {plan.every_s:g} s for {plan.faults_s:g} s")
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


def mixed(seed: int, minutes: float) -> Plan:
    """Everything at once, for a while."""
    return Plan(
        seed=seed,
        scenes=scenes(seed, max(14, round(_RUNS_PER_MINUTE * minutes))),
        faults=faults(seed),
        faults_s=60 * minutes,
        every_s=_EVERY_S,
        stopped_s=20.0,
        settle_s=300.0,
    )


def each_once(seed: int) -> Plan:
    """200 runs in flight; each part is killed once, then all; who waits for approval gets it afterwards."""
    return Plan(
        seed=seed,
        scenes=RUNS_OF_EACH_ONCE,
        faults=EACH_ONCE,
        faults_s=_EVERY_S * len(EACH_ONCE),
        every_s=_EVERY_S,
        stopped_s=20.0,
        settle_s=300.0,
        hold=True,
    )


def say(line: str) -> None:
    """To whoever watches."""
    if line:
        print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
