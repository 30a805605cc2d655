"""What a role's main coroutine is run on."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Generator

import pytest
import uvloop

from towline.telemetry import event_loop


@pytest.fixture(autouse=True)
def collector() -> Generator[None]:
    thresholds = gc.get_threshold()
    # Python's own: another test of this process may have run a role in it.
    gc.set_threshold(700, 10, 10)
    yield
    gc.set_threshold(*thresholds)
    gc.unfreeze()


def test_a_role_runs_on_uvloop_and_its_result_is_answered() -> None:
    async def main() -> bool:
        return isinstance(asyncio.get_running_loop(), uvloop.Loop)

    assert event_loop.run(main())


def test_what_a_role_raises_is_raised() -> None:
    async def main() -> None:
        raise LookupError("x")

    with pytest.raises(LookupError, match="x"):
        event_loop.run(main())


def test_garbage_is_looked_for_less_often_and_not_in_what_was_loaded() -> None:
    before = gc.get_threshold()[0]

    async def main() -> tuple[int, int]:
        return gc.get_threshold()[0], gc.get_freeze_count()

    threshold, frozen = event_loop.run(main())
    assert threshold > before
    assert frozen > 0
