"""What a rate takes, calculated from measured costs."""

from __future__ import annotations

from dataclasses import replace

import pytest
from benchmarks.end_to_end.results import Results
from benchmarks.scale import (
    BUSY_AT_MOST,
    Costs,
    ScaleError,
    costs,
    markdown,
    next_wall,
    processes,
    walls,
)
from tests.unit.benchmarks.test_results import ROW

COST = Costs(
    cpu_ms={"worker": 2.0, "scheduler": 1.0, "relay": 0.5, "bridge": 0.25, "kafka": 0.5, "valkey": 0.1},
    approval_factor=2.0,
    waiting_kb={"disk": 8.0, "redis": 4.0},
    yardstick_ms=0.66,
)


def test_processes_grow_with_the_rate_and_none_is_planned_full() -> None:
    assert processes("worker", 10, COST) == 1
    assert processes("worker", 1_000, COST) == 3
    assert 1_000 * 2.0 / 1000 / processes("worker", 1_000, COST) <= BUSY_AT_MOST


def test_the_machine_is_the_first_wall_then_one_worker_then_the_scheduler() -> None:
    assert [wall.what.partition(":")[0] for wall in walls(COST)][:3] == [
        "the 2 cores of one machine",
        "one worker process",
        "the scheduler",
    ]
    wall = next_wall(400, COST)
    assert wall is not None
    assert wall.at_per_s == pytest.approx(700)
    assert next_wall(1_000_000, COST) is None


def test_costs_at_rest_shrink_as_the_yardstick_does_and_never_grow() -> None:
    assert COST.at_rest().cpu_ms["worker"] == pytest.approx(1.0)
    assert replace(COST, yardstick_ms=0.2).at_rest().cpu_ms["worker"] == 2.0


def test_costs_come_from_the_largest_measured_rows() -> None:
    plain = replace(ROW, cpu_ms_per_run={"worker": 3.0, "scheduler": 1.0}, own_cpu_ms_per_run=4.0)
    rows = [
        plain,
        replace(plain, runs=1_000, cpu_ms_per_run={"worker": 2.0, "scheduler": 1.0}),
        replace(plain, runs=2_000, model_ms=500, cpu_ms_per_run={"worker": 9.0}),
        replace(plain, system="restate", runs=5_000),
        replace(plain, workload="approvals", own_cpu_ms_per_run=8.0),
        replace(plain, workload="waiting approvals", facts={"waiting_disk_kb": 7.0, "waiting_cores": 0.1}),
    ]

    found = costs(Results(rows=rows))

    assert found.cpu_ms["worker"] == 2.0
    assert found.approval_factor == pytest.approx(2.0)
    assert found.waiting_kb == {"disk": 7.0}


def test_results_without_towline_are_refused_with_what_to_run() -> None:
    with pytest.raises(ScaleError, match="--systems towline"):
        costs(Results(rows=[replace(ROW, system="dbos")]))


def test_the_tables_reach_the_highest_rate_and_ten_million_waiting_runs() -> None:
    tables = markdown(COST)

    assert "| 10,000 | 29 | 15 |" in tables
    assert "| 10,000,000 | 76.3 | 38.1 |" in tables
    assert "CPU hours a million runs: 1.2 measured, 0.6 at rest;" in tables
