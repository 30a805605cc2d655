"""Runs do not wait for one another."""

from __future__ import annotations

import asyncio
import time

from tests.integration.wire.raw import Wire


async def test_forty_runs_on_a_model_that_takes_two_seconds_end_within_five(wire: Wire) -> None:
    await wire.outcome(await wire.start("agent.Joker", {"message": "warm up"}))
    began = time.monotonic()

    run_ids = await asyncio.gather(*(wire.start("ask_slowly", "x") for _ in range(40)))
    await wire.all_outcomes(run_ids)

    assert time.monotonic() - began < 5.0
    assert {wire.outcomes(run_id)[0].data["output"] for run_id in run_ids} == {"At last."}


async def test_a_short_run_does_not_wait_for_the_long_ones_before_it(wire: Wire) -> None:
    slow = await asyncio.gather(*(wire.start("ask_slowly", "x") for _ in range(20)))
    began = time.monotonic()

    await wire.outcome(await wire.start("write_slogan", "a lamp"))

    assert time.monotonic() - began < 1.5
    await wire.all_outcomes(slow)


async def test_three_hundred_runs_at_once_all_have_their_one_outcome(wire: Wire) -> None:
    run_ids = await asyncio.gather(*(wire.start("agent.Joker", {"message": "x"}) for _ in range(300)))

    await wire.all_outcomes(run_ids, timeout_s=60)
    await wire.settle()

    assert {len(wire.outcomes(run_id)) for run_id in run_ids} == {1}
