"""How long a watch waits between two looks at its run's history, and who is told what it saw."""

from __future__ import annotations

import asyncio
from typing import cast

from hypothesis import given
from hypothesis import strategies as st

from towline.bridge.availability import Availability
from towline.bridge.scheduler import Commands, Scheduler
from towline.bridge.watches import Watches, patience

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


class Histories:
    """A scheduler whose runs have seen what they are said to have, once they are asked."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.answer: asyncio.Future[Commands] = asyncio.get_running_loop().create_future()

    async def commands_of(self, run_id: str) -> Commands:
        """The answer, when it is there."""
        self.asked.set()
        return await self.answer


async def test_who_gives_up_at_the_very_moment_of_the_answer_spoils_it_for_nobody_else() -> None:
    histories = Histories()
    scheduler = cast("Scheduler", histories)
    watches = Watches(scheduler, Availability(scheduler))
    leaving = asyncio.create_task(watches.seen("r-1", "c-1"))
    staying = [asyncio.create_task(watches.seen("r-1", command)) for command in ("c-1", "c-2")]
    await histories.asked.wait()
    histories.answer.set_result(Commands(frozenset({"c-1", "c-2"}), ended=False))
    leaving.cancel()
    async with asyncio.timeout(10):
        assert await asyncio.gather(*staying) == [True, True]
    assert leaving.cancelled()
