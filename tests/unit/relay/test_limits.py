"""What shares a read under load, and what never waits."""

from __future__ import annotations

from towline.relay.limits import Pace


def test_work_below_the_rate_never_waits() -> None:
    pace = Pace(rate_per_s=50, burst=4)
    for number in range(200):
        assert pace.wait_s(now=number * 0.025) == 0
        pace.spend(now=number * 0.025)


def test_a_burst_waits_for_nothing_and_what_follows_for_its_share() -> None:
    pace = Pace(rate_per_s=50, burst=4)
    for _ in range(4):
        assert pace.wait_s(now=1) == 0
        pace.spend(now=1)
    assert abs(pace.wait_s(now=1) - 0.02) < 1e-9
    assert pace.wait_s(now=1.02) < 1e-9


def test_work_that_does_not_count_costs_nothing() -> None:
    pace = Pace(rate_per_s=50, burst=1)
    assert [pace.wait_s(now=now) for now in (1.0, 1.0, 1.001)] == [0, 0, 0]


def test_work_that_took_long_makes_up_for_its_share() -> None:
    pace = Pace(rate_per_s=50, burst=2)
    for _ in range(3):
        pace.spend(now=1)
    assert pace.wait_s(now=1) > 0.03
    assert pace.wait_s(now=9) == 0
