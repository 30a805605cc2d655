"""What has to happen now and then goes on happening."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from durabletask.internal import orchestrator_service_pb2 as pb
from tests.unit.scheduler.test_store import answer, open_runtime, start, take
from tests.waiting import eventually_async

from towline.scheduler.server.readers import Readers
from towline.scheduler.server.upkeep import Upkeep


async def test_retention_goes_on_after_a_moment_in_which_the_file_could_not_be_opened(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """No file descriptor was free, say."""
    runtime, writer = open_runtime(tmp_path)
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
    runtime.close()
    writer.close()
