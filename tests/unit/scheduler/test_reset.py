"""After a commit that failed, the server goes on from what is on disk, and from nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from pathlib import Path

import pytest
from durabletask.internal import orchestrator_service_pb2 as pb
from tests.unit.scheduler.test_store import ACTIVITY, answer, attached, given, open_runtime, start
from tests.waiting import eventually_async

from towline.scheduler.engine import lifecycle
from towline.scheduler.engine.errors import NotDurableError
from towline.scheduler.server.dispatch import Kind, Stream, Work
from towline.scheduler.server.runtime import Runtime
from towline.scheduler.store import failpoints
from towline.scheduler.store.database import connect

GRACE_S = 0.05


@pytest.fixture
def runtime_options() -> dict[str, float]:
    return {"grace_s": GRACE_S}


class Worker:
    """Takes what it is given at once."""

    def __init__(self, runtime: Runtime, name: str = "w") -> None:
        self._runtime = runtime
        self.items: list[pb.WorkItem] = []
        self.stream: Stream = attached(runtime, name)
        self.stream.notify = lambda: runtime.loop.call_soon(self._take) and None
        self._take()

    def _take(self) -> None:
        self.items += given(self._runtime, self.stream)

    @property
    def activities(self) -> list[pb.WorkItem]:
        return [item for item in self.items if item.HasField("activityRequest")]

    async def activity(self) -> pb.WorkItem:
        """The activity of a run that is started for it."""
        await start(self._runtime, "run")
        (turn,) = await eventually_async(lambda: self.items, "the first turn")
        answer(self._runtime, turn, ACTIVITY)
        return (await eventually_async(lambda: self.activities, "the activity"))[0]


async def fail_a_commit(runtime: Runtime, *, meanwhile: str = "lost") -> None:
    failpoints.arm("apply.before", "error")
    with pytest.raises(NotDurableError):
        await start(runtime, meanwhile)
    await asyncio.sleep(0)  # the reset runs in the next turn of the loop


async def test_an_activity_under_way_goes_out_once_however_many_commits_fail(
    runtime: Runtime, writer: sqlite3.Connection
) -> None:
    """It charges a card each time that it goes out."""
    worker = Worker(runtime)
    await worker.activity()
    leased = "SELECT leased FROM activity"
    await eventually_async(lambda: writer.execute(leased).fetchone() == (1,), "the hand-out is noted")

    for _ in range(4):
        await fail_a_commit(runtime)
    await start(runtime, "other")  # the disk has room again
    grace_is_over = asyncio.Event()
    runtime.dispatcher.hold_back(Work(Kind.ACTIVITY, 0, "", "", (0, "")), 2 * GRACE_S, grace_is_over.set)
    await grace_is_over.wait()

    assert len(worker.activities) == 2, "once before the reset, and once after the grace"


async def test_an_activity_that_waits_out_a_backoff_while_a_commit_fails_still_comes_back_from_a_lost_worker(
    runtime: Runtime,
) -> None:
    worker = Worker(runtime)
    activity = await worker.activity()
    runtime.losses.abandon(activity.completionToken)
    await fail_a_commit(runtime)
    await start(runtime, "other")
    await eventually_async(lambda: len(worker.activities) == 2, "it goes out again")

    runtime.losses.detach(worker.stream)
    another = Worker(runtime, "another")

    await eventually_async(lambda: another.activities, "it goes to another worker", timeout_s=10)


async def test_a_task_hub_whose_deletion_was_not_committed_is_left_alone(runtime: Runtime) -> None:
    await start(runtime, "run")
    hub = runtime.hub("h")
    failpoints.arm("apply.before", "error")
    runtime.doom_hub("h")
    with pytest.raises(NotDurableError):
        await runtime.journal.commit()
    await asyncio.sleep(0)  # the reset runs in the next turn of the loop

    assert runtime.hub("h") == hub
    assert not runtime.doomed_hubs, (
        "the upkeep would empty it, and delete the number that runs are started under"
    )


async def test_a_start_that_comes_between_a_failed_commit_and_the_reset_is_refused_or_found_again(
    runtime: Runtime, writer: sqlite3.Connection
) -> None:
    """It would be under the number of a task hub that never came to be."""
    answers: list[NotDurableError | None] = []

    def start_in(hub: int) -> None:
        request = pb.CreateInstanceRequest(instanceId=f"run{len(answers)}", name="x")
        runtime.change(lambda changes, world, now: lifecycle.start(changes, world, hub, request, now))
        runtime.journal.when_durable(answers.append)

    failpoints.arm("apply.before", "error")
    start_in(runtime.hub("new"))
    runtime.loop.call_soon(lambda: start_in(runtime.hub("new")))  # another caller's, just after the commit
    await eventually_async(lambda: len(answers) == 2, "both are answered")

    accepted = [error for error in answers if error is None]
    found = "SELECT count(*) FROM instance JOIN hub ON hub.id=instance.hub WHERE hub.name='new'"
    assert writer.execute(found).fetchone() == (len(accepted),)


async def test_the_file_is_read_once_when_it_can_be_written_again(
    runtime: Runtime, writer: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read twice, it would have handed out again what has gone out since the first time."""
    monkeypatch.setattr("towline.scheduler.server.runtime._RECOVER_AGAIN_S", 0.02)
    await start(runtime, "run")
    reads: list[None] = []
    recover = runtime.recover

    def counted() -> None:
        recover()
        reads.append(None)

    monkeypatch.setattr(runtime, "recover", counted)
    writer.execute("PRAGMA busy_timeout=0")
    with contextlib.closing(connect(runtime.path)) as other:
        other.execute("BEGIN IMMEDIATE")
        for _ in range(5):
            with pytest.raises(NotDurableError):
                await start(runtime, "refused")
        other.execute("ROLLBACK")

    await eventually_async(lambda: reads, "the file has been read")
    await start(runtime, "accepted")
    all_over = asyncio.Event()
    runtime.loop.call_later(0.1, all_over.set)
    await all_over.wait()
    assert len(reads) == 1


async def test_tokens_are_understood_after_a_restart_although_the_first_commit_failed(tmp_path: Path) -> None:
    """Else whatever workers had would be done twice, and what they answer thrown away."""
    before, writer = open_runtime(tmp_path)
    await fail_a_commit(before)
    worker = Worker(before)
    token = (await worker.activity()).completionToken
    leased = "SELECT leased FROM activity"
    await eventually_async(lambda: writer.execute(leased).fetchone() == (1,), "the hand-out is noted")
    before.close()
    writer.close()

    after, writer = open_runtime(tmp_path, GRACE_S)
    taken = after.answers.complete_activity(pb.ActivityResponse(completionToken=token))
    after.close()
    writer.close()

    assert taken
