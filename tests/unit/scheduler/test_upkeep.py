"""What has to happen now and then goes on happening."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from pathlib import Path

import pytest
from durabletask.internal import orchestrator_service_pb2 as pb
from tests.unit.scheduler.test_store import answer, start, take
from tests.waiting import eventually_async

from towline.scheduler.engine.errors import NotDurableError
from towline.scheduler.server.readers import Readers
from towline.scheduler.server.runtime import Runtime
from towline.scheduler.server.upkeep import Upkeep
from towline.scheduler.store import failpoints


async def test_retention_goes_on_after_a_moment_in_which_the_file_could_not_be_opened(
    runtime: Runtime, writer: sqlite3.Connection, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """No file descriptor was free, say."""
    await start(runtime, "run")
    (turn,) = take(runtime)
    end = pb.CompleteOrchestrationAction(orchestrationStatus=pb.ORCHESTRATION_STATUS_COMPLETED)
    answer(runtime, turn, pb.OrchestratorAction(id=1, completeOrchestration=end))
    await runtime.journal.commit()
    later = tmp_path / "later.db"
    readers = Readers(later)
    upkeep = Upkeep(runtime, readers, ping_s=60.0, retention_s=0.01)

    upkeep.start()
    await eventually_async(lambda: "upkeep.failed" in caplog.messages, "it could not be opened", timeout_s=5)
    for suffix in ("", "-wal", "-shm"):
        os.link(f"{runtime.path}{suffix}", f"{later}{suffix}")

    count = "SELECT count(*) FROM instance"
    await eventually_async(lambda: writer.execute(count).fetchone() == (0,), "it is deleted", timeout_s=5)
    await upkeep.stop()
    readers.close()


async def test_a_hub_is_not_emptied_while_its_deletion_may_yet_fail(
    runtime: Runtime, writer: sqlite3.Connection
) -> None:
    """The commit failed while the first of its runs were being looked for: they were deleted all the same."""
    await start(runtime, "run")
    readers = Readers(runtime.path)
    upkeep = Upkeep(runtime, readers, ping_s=60.0, retention_s=None)

    failpoints.arm("apply.before", "error")
    runtime.doom_hub("h")
    with contextlib.suppress(NotDurableError):
        await upkeep._empty_hubs()
    failpoints.disarm()
    await start(runtime, "later")

    assert writer.execute("SELECT id FROM instance ORDER BY id").fetchall() == [("later",), ("run",)]
    readers.close()


async def test_a_delayed_signal_leaves_nothing_in_a_hub_that_is_gone(
    runtime: Runtime, writer: sqlite3.Connection
) -> None:
    """It would be counted as work that waits for ever."""
    readers = Readers(runtime.path)
    upkeep = Upkeep(runtime, readers, ping_s=60.0, retention_s=None)
    signal = pb.SignalEntityRequest(instanceId="@counter@one", name="add")
    signal.scheduledTime.FromMicroseconds(runtime.clock.now() + 200_000)
    runtime.signal(runtime.hub("h"), signal)
    await runtime.journal.commit()
    await eventually_async(lambda: runtime.timers.pending == 1, "it waits for its time")

    runtime.doom_hub("h")
    await upkeep._empty_hubs()
    await eventually_async(lambda: runtime.timers.pending == 0, "its time has come")
    await runtime.journal.commit()

    assert runtime.dispatcher.waiting == [0, 0, 0]
    assert writer.execute("SELECT count(*) FROM operation").fetchone() == (0,)
    readers.close()
