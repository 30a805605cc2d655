"""Rows, their medians and ratios, and the file that pieces of a benchmark are merged in."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from benchmarks.end_to_end.results import Measured, Results, ResultsError, percentiles, ratio, summarise

ROW = Measured(
    workload="at once",
    system="towline",
    runs=100,
    model_ms=0,
    seconds=2.0,
    lost=0,
    duplicates=0,
    wrong=0,
    cpu_ms_per_run={"worker": 2.0, "kafka": 1.0},
    own_cpu_ms_per_run=2.0,
    peak_mb={"worker": 100.0},
    peak_together_mb=100.0,
    load=1.0,
    yardstick_ms=0.5,
    others_cores=0.1,
    round="1",
)


def test_percentiles_are_of_the_nearest_rank() -> None:
    assert percentiles(number / 1000 for number in range(1, 101)) == {"p50": 51.0, "p99": 100.0}
    assert percentiles([]) == {}


def test_a_summary_is_the_median_of_the_rounds_and_adds_up_what_went_wrong() -> None:
    rows = [replace(ROW, seconds=seconds, lost=lost) for seconds, lost in ((1.0, 0), (4.0, 2), (2.0, 1))]

    (summary,) = summarise(rows)

    assert summary.rounds == 3
    assert summary.runs_per_s == pytest.approx(99 / 2.0)
    assert summary.lost == 3
    assert summary.cpu_ms == {"worker": 2.0, "kafka": 1.0}


def test_lost_runs_do_not_count_as_throughput() -> None:
    assert replace(ROW, lost=50).runs_per_s == 25.0


def test_workloads_differ_by_name_runs_and_model_time() -> None:
    rows = [ROW, replace(ROW, runs=10), replace(ROW, model_ms=500), replace(ROW, system="restate")]

    assert [(one.key, one.system) for one in summarise(rows)] == [
        (("at once", 100, 0), "towline"),
        (("at once", 10, 0), "towline"),
        (("at once", 100, 500), "towline"),
        (("at once", 100, 0), "restate"),
    ]


def test_a_ratio_is_made_within_a_round_so_that_the_machines_mood_cancels_out() -> None:
    rows = [
        replace(ROW, round="quiet", seconds=1.0, own_cpu_ms_per_run=1.0),
        replace(ROW, round="quiet", system="dbos", seconds=2.0, own_cpu_ms_per_run=4.0),
        replace(ROW, round="busy", seconds=10.0, own_cpu_ms_per_run=10.0),
        replace(ROW, round="busy", system="dbos", seconds=20.0, own_cpu_ms_per_run=40.0),
        replace(ROW, round="half", system="dbos", seconds=0.001),
    ]

    found = ratio(rows, ROW.key, "towline", "dbos")

    assert found is not None
    assert (found.speed, found.cpu) == (2.0, 0.25)


def test_one_in_flight_is_compared_by_its_median_latency() -> None:
    ours = replace(ROW, workload="one in flight", latency_ms={"p50": 10.0, "p99": 20.0})
    theirs = replace(ours, system="restate", latency_ms={"p50": 5.0, "p99": 90.0})

    found = ratio([ours, theirs], ours.key, "towline", "restate")

    assert found is not None
    assert found.speed == pytest.approx(0.5)


def test_there_is_no_ratio_of_systems_that_never_met_in_a_round() -> None:
    rows = [ROW, replace(ROW, system="dbos", round="2")]

    assert ratio(rows, ROW.key, "towline", "dbos") is None


def test_pieces_are_merged_and_what_was_run_later_is_no_longer_called_not_run(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    Results(
        about={"at": "noon", "systems": {"towline": {}}},
        not_run={"restate": "not installed", "calfkit: approvals": "has none"},
        at_rest={"towline": {"cores": 0.1}},
        rows=[ROW],
    ).write(file)

    merged = Results.read(file)
    merged.merge(
        Results(about={"at": "later", "systems": {"restate": {}}}, rows=[replace(ROW, system="restate")])
    )

    assert merged.about["at"] == "later"
    assert set(merged.about["systems"]) == {"towline", "restate"}
    assert merged.not_run == {"calfkit: approvals": "has none"}
    assert [row.system for row in merged.rows] == ["towline", "restate"]
    assert merged.rows[0] == ROW


@pytest.mark.parametrize("facts", [{}, {"measured": [{"workload": "at once"}], "not_run": {}, "at_rest": {}}])
def test_a_file_of_another_version_is_refused_with_its_name_and_the_fix(
    tmp_path: Path, facts: dict[str, object]
) -> None:
    file = tmp_path / "old.json"
    file.write_text(json.dumps(facts))

    with pytest.raises(ResultsError, match=r"old\.json.*move it away"):
        Results.read(file)
