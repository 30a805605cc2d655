"""The page that a benchmark writes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from benchmarks.end_to_end.pages import PageError, marks, replaced
from benchmarks.end_to_end.report import compact, markdown
from benchmarks.end_to_end.results import Results
from tests.unit.benchmarks.test_results import ROW


def test_the_page_says_what_was_not_run_and_why() -> None:
    page = markdown(Results(not_run={"temporal": "Temporal's server is not installed"}, rows=[ROW]))

    assert "- Not run: temporal: Temporal's server is not installed." in page


def test_each_row_sets_towline_beside_that_system() -> None:
    slower = replace(ROW, system="dbos", seconds=4.0, own_cpu_ms_per_run=8.0)

    page = markdown(Results(rows=[ROW, slower]))

    (ours,) = [line for line in page.splitlines() if line.startswith("| towline |")]
    (theirs,) = [line for line in page.splitlines() if line.startswith("| dbos |")]
    assert "2.00, 0.25" in theirs
    assert "1.00, 1.00" not in ours


def test_a_system_with_two_processes_is_set_beside_towlines_of_two_and_each_beside_its_core() -> None:
    rows = [
        ROW,
        replace(ROW, system="towline-x2", seconds=1.0),
        replace(ROW, system="towline-core-x2", seconds=0.5),
        replace(ROW, system="dbos-x2", seconds=4.0),
    ]

    page = markdown(Results(rows=rows))

    (theirs,) = [line for line in page.splitlines() if line.startswith("| dbos-x2 |")]
    assert "| 4.00, 1.00 | 8.00, 1.00 |" in theirs


def test_losses_of_any_round_are_shown() -> None:
    page = markdown(Results(rows=[ROW, replace(ROW, lost=3, duplicates=2, wrong=1)]))

    assert "| 3, 2, 1 |" in page


def test_the_short_table_has_one_row_for_each_workload_and_system() -> None:
    ours = replace(ROW, runs=300, seconds=6.0)
    slower = replace(ours, system="dbos", seconds=12.0, own_cpu_ms_per_run=8.0, lost=3)
    few = replace(ROW, runs=100, workload="at once")
    swept = replace(ROW, workload="offered 5/s")

    rows = compact(Results(rows=[ours, slower, few, swept])).splitlines()[2:]

    assert rows == [
        "| 300 at once, L = 0 ms | **towline** | 50 | | 4.0 (2.0) | | | |",
        "| | dbos | 25 | | 16.0 (8.0) | 2.02, 0.25 | | 3 lost |",
    ]


def test_only_what_is_between_the_marks_is_replaced() -> None:
    begin, end = marks("x.py")

    assert replaced(f"a\n{begin}\nold\n{end}\nb\n", "x.py", "new\n") == f"a\n{begin}\nnew\n{end}\nb\n"
    with pytest.raises(PageError, match="lacks the lines"):
        replaced(f"{begin}\n", "x.py", "new\n")
