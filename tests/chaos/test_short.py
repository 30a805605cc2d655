"""The short chaos test: each part is killed, then all at once, under 150 scenes; every promise is checked."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest
from tests.chaos.campaign import Plan, run, told
from tests.chaos.load import scenes
from tests.chaos.nemesis import SHORT, Fleet

SEED = 6
FAULTS_S = 2.3 * len(SHORT)
PLAN = Plan(
    seed=SEED,
    scenes=scenes(SEED, 150),
    faults=SHORT,
    faults_s=FAULTS_S,
    every_s=2.3,
    stopped_s=4.0,
    settle_s=240.0,
)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_nothing_is_lost_or_doubled_whatever_is_killed(tmp_path: Path) -> None:
    said: list[str] = []
    with Fleet.planned(tmp_path / "fleet", unknown_run_grace_s=10).running() as fleet:
        result = asyncio.run(run(fleet, PLAN, said.append))
    print("\n".join(said), result.verdict.counts, dict(result.tally), sep="\n")

    assert not result.problems
    assert not result.verdict.violations, told(result.verdict.violations)
    assert len(result.happened) == len(SHORT)
    counts = result.verdict.counts
    assert counts["sent"] == counts["handled"] + counts["dead-lettered"] + counts["rejected"]
    assert counts["runs"] == counts["outcomes"] > 100
    # Kept for a look when something above failed.
    shutil.rmtree(tmp_path / "fleet")
