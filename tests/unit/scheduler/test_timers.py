"""Timers at the ends of time."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from durabletask.internal import orchestrator_service_pb2 as pb
from tests.unit.scheduler.test_store import answer, attached, given, open_runtime, start
from tests.waiting import eventually_async


async def test_a_timer_of_before_1970_that_has_not_fired_when_the_server_ends_fires_after_its_start(
    tmp_path: Path,
) -> None:
    """Its run waited for ever."""
    before, writer = open_runtime(tmp_path)
    await start(before, "run")
    (turn,) = given(before, attached(before))
    timer = pb.CreateTimerAction()
    timer.fireAt.FromDatetime(datetime(1900, 1, 1, tzinfo=UTC))
    before.timers.close()  # as if it were killed in the moment of the commit
    before.timers.arm = lambda: None  # type: ignore[method-assign]
    answer(before, turn, pb.OrchestratorAction(id=1, createTimer=timer))
    await before.journal.commit()
    before.close()
    writer.close()

    after, writer = open_runtime(tmp_path)
    stream = attached(after)
    await eventually_async(lambda: stream.pending, "the timer fires", timeout_s=5)
    (turn,) = given(after, stream)
    assert turn.orchestratorRequest.newEvents[-1].HasField("timerFired")
    after.close()
    writer.close()
