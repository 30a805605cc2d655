"""How long a watch waits between two looks at its run's history."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from towline.bridge.watches import patience

STEPS = st.integers(0, 20)
WATCHES = st.integers(1, 100_000)


def test_a_decision_that_is_alone_is_looked_after_at_once_and_then_less_and_less_often() -> None:
    assert [patience(step, 1) for step in range(7)] == [0.1, 0.4, 2.0, 5.0, 10.0, 30.0, 30.0]


@given(STEPS, WATCHES)
def test_a_flood_of_decisions_is_no_flood_of_looks(step: int, watches: int) -> None:
    waited_s = patience(step, watches)
    assert 0.1 <= waited_s <= 30.0
    assert waited_s == 30.0 or watches <= 50 * waited_s + 1e-6


@given(STEPS, WATCHES)
def test_waits_grow_with_each_look_in_vain_and_with_the_watches(step: int, watches: int) -> None:
    assert patience(step, watches) <= patience(step + 1, watches)
    assert patience(step, watches) <= patience(step, watches + 1)
