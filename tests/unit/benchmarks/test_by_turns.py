"""Statistics of what is measured run by run."""

from __future__ import annotations

import random

from benchmarks.by_turns import ratio_of_medians


def test_drift_that_meets_both_cancels_out() -> None:
    draw = random.Random(7)
    drift = [20 + 10 * number / 400 for number in range(400)]
    old = [base + draw.gauss(0, 1) for base in drift]
    new = [0.9 * base + draw.gauss(0, 1) for base in drift]

    ratio, error = ratio_of_medians(new, old)

    assert abs(ratio - 0.9) < 3 * error
    assert 0 < error < 0.02


def test_what_is_compared_with_itself_is_the_same_for_sure() -> None:
    took = [1.0, 2.0, 3.0, 4.0]

    assert ratio_of_medians(took, took) == (1.0, 0.0)
