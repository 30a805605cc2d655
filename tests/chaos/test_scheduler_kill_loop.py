"""The short form of the kill loop; the long one is ``python -m tests.chaos.scheduler_kill_loop``."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from tests.chaos.scheduler_kill_loop import KillLoop, Plan


@pytest.mark.slow
def test_a_scheduler_killed_in_a_loop_keeps_its_word(tmp_path: Path) -> None:
    plan = Plan(seed=random.randrange(1_000_000), kills=10, runs=120, pause_s=(0.4, 1.2), limit_s=90)

    verdict = KillLoop(plan, tmp_path).run()
    print(verdict)

    assert verdict.problems == [], f"seed {plan.seed}"
    assert verdict.kills == plan.kills
