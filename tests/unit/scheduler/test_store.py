"""The store under failures: a commit happens whole or not at all, and what is wrong with a file is said."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from durabletask.internal import orchestrator_service_pb2 as pb
from google.protobuf.wrappers_pb2 import StringValue

from towline.scheduler.engine import control, lifecycle, turns
from towline.scheduler.engine.changes import Changes
from towline.scheduler.engine.errors import InvalidRequestError, NotDurableError
from towline.scheduler.engine.model import FAILED, PENDING, Instance
from towline.scheduler.engine.ports import Limits, World
from towline.scheduler.server.answers import UnusableAnswerError
from towline.scheduler.server.dispatch import Stream
from towline.scheduler.server.runtime import Leases, Runtime
from towline.scheduler.server.world import CacheLimits
from towline.scheduler.store import failpoints
from towline.scheduler.store.database import FILE_NAME, backup, connect, migrate, migrations, open_folder
from towline.scheduler.store.errors import DamagedError, InUseError, NewerFileError, StoreError

SMALL_CACHE = CacheLimits(instances=2)
BOUNDARIES = ("apply.before", "commit.before", "commit.after")


@pytest.fixture(autouse=True)
def _disarmed() -> Iterator[None]:
    yield
    failpoints.disarm()


def open_runtime(
    folder: Path, grace_s: float = 0.0, cache: CacheLimits = SMALL_CACHE
) -> tuple[Runtime, sqlite3.Connection]:
    path = folder / FILE_NAME
    writer = connect(path)
    migrate(writer, path)
    runtime = Runtime(
        path,
        writer,
        limits=Limits(),
        cache=cache,
        leases=Leases(grace_s=grace_s),
        test_clock=False,
    )
    runtime.recover()
    return runtime, writer


async def start(runtime: Runtime, instance_id: str) -> None:
    hub = runtime.hub("h")
    request = pb.CreateInstanceRequest(instanceId=instance_id, name="x")
    runtime.change(lambda changes, world, now: lifecycle.start(changes, world, hub, request, now))
    await runtime.journal.commit()


def take(runtime: Runtime) -> list[pb.WorkItem]:
    """Everything that is runnable, as a worker's stream gets it."""
    return given(runtime, attached(runtime))


def attached(runtime: Runtime, worker: str = "w") -> Stream:
    """A worker's stream, of which nothing is written by itself."""
    stream = Stream(runtime.hub("h"), worker, (100, 100, 100), (None, None, None))
    runtime.dispatcher.attach(stream)
    return stream


def given(runtime: Runtime, stream: Stream) -> list[pb.WorkItem]:
    """What a stream has been assigned and not been written yet."""
    items: list[pb.WorkItem] = []
    while stream.pending:
        work = stream.pending.popleft()
        data = runtime.handouts.encode(stream, work) if work is not None else None
        if data is not None:
            items.append(pb.WorkItem.FromString(data))
    return items


def answer(runtime: Runtime, item: pb.WorkItem, *actions: pb.OrchestratorAction) -> bool:
    response = pb.OrchestratorResponse(
        instanceId=item.orchestratorRequest.instanceId, completionToken=item.completionToken, actions=actions
    )
    return runtime.answers.complete_turn(response)


ACTIVITY = pb.OrchestratorAction(id=1, scheduleTask=pb.ScheduleTaskAction(name="work"))


def crash_in_turn(folder: str, boundary: str) -> None:
    """A process that is killed at a boundary of the commit of a turn."""

    async def main() -> None:
        runtime, _ = open_runtime(Path(folder))
        await start(runtime, "run")
        (item,) = take(runtime)
        failpoints.arm(boundary, "kill")
        answer(runtime, item, ACTIVITY)
        await runtime.journal.commit()

    asyncio.run(main())


@pytest.mark.parametrize("boundary", BOUNDARIES)
async def test_a_kill_at_a_commit_boundary_leaves_the_whole_turn_or_none_of_it(
    tmp_path: Path, boundary: str
) -> None:
    process = multiprocessing.get_context("spawn").Process(
        target=crash_in_turn, args=(str(tmp_path), boundary)
    )
    process.start()
    await asyncio.to_thread(process.join, 30)
    assert process.exitcode == -9

    runtime, writer = open_runtime(tmp_path)
    items = take(runtime)

    committed = boundary == "commit.after"
    assert [item.WhichOneof("request") for item in items] == [
        "activityRequest" if committed else "orchestratorRequest"
    ]
    history = writer.execute("SELECT count(*) FROM history").fetchone()[0]
    inbox = writer.execute("SELECT count(*) FROM inbox").fetchone()[0]
    assert (history, inbox) == ((1, 0) if committed else (0, 1))
    runtime.close()
    writer.close()


@pytest.mark.parametrize("boundary", BOUNDARIES[:2])
async def test_a_failed_commit_undoes_the_change_and_work_goes_out_again(
    tmp_path: Path, boundary: str
) -> None:
    runtime, writer = open_runtime(tmp_path)
    await start(runtime, "run")
    (item,) = take(runtime)
    runtime.dispatcher.streams.clear()  # nobody takes what the reset finds before this test does
    failpoints.arm(boundary, "error")
    answer(runtime, item, ACTIVITY)
    with pytest.raises(NotDurableError):
        await runtime.journal.commit()
    await asyncio.sleep(0)  # the reset runs in the next turn of the loop

    assert answer(runtime, item, ACTIVITY) is False
    again = take(runtime)
    await start(runtime, "another")
    assert [one.WhichOneof("request") for one in again] == ["orchestratorRequest"]
    assert runtime.journal.stats.failures == 1
    runtime.close()
    writer.close()


async def test_a_turn_is_given_nothing_that_may_yet_be_undone(tmp_path: Path) -> None:
    """What comes after the commit that made a turn due, and before it goes out, waits for the next."""
    runtime, writer = open_runtime(tmp_path)
    await start(runtime, "run")
    (first,) = take(runtime)
    answer(runtime, first)
    await runtime.journal.commit()
    runtime.dispatcher.streams.clear()
    stream = attached(runtime)

    await raise_event(runtime, "on disk")
    not_yet = asyncio.create_task(raise_event(runtime, "not yet"))
    await asyncio.sleep(0)  # it is accepted, and its commit comes in the next turn of the loop

    (turn,) = given(runtime, stream)
    assert raised(turn) == ["on disk"]
    await not_yet
    answer(runtime, turn)
    await runtime.journal.commit()
    (following,) = given(runtime, stream)
    assert raised(following) == ["not yet"]
    runtime.close()
    writer.close()


def raised(turn: pb.WorkItem) -> list[str]:
    """Names of the events that a turn brings."""
    news = turn.orchestratorRequest.newEvents
    return [event.eventRaised.name for event in news if event.HasField("eventRaised")]


async def raise_event(runtime: Runtime, name: str) -> None:
    hub = runtime.hub("h")
    runtime.change(
        lambda changes, world, now: control.raise_event(changes, world, hub, "run", name, None, now)
    )
    await runtime.journal.commit()


async def test_instances_beyond_the_memory_limit_are_read_again(tmp_path: Path) -> None:
    runtime, writer = open_runtime(tmp_path)
    for number in range(20):
        await start(runtime, f"run{number}")

    assert runtime.world.sizes()["instances"] <= 3
    assert sorted(item.orchestratorRequest.instanceId for item in take(runtime)) == sorted(
        f"run{n}" for n in range(20)
    )
    runtime.close()
    writer.close()


def test_a_folder_in_use_a_newer_and_a_foreign_file_are_refused(tmp_path: Path) -> None:
    lock = open_folder(tmp_path)
    with pytest.raises(InUseError, match="in use by another scheduler"):
        open_folder(tmp_path)
    lock.release()
    path = tmp_path / FILE_NAME
    connection = connect(path)
    migrate(connection, path)
    connection.execute(f"PRAGMA user_version={len(migrations()) + 1}")
    with pytest.raises(NewerFileError, match="newer version"):
        migrate(connection, path)
    connection.close()
    foreign = tmp_path / "foreign.db"
    foreign.write_bytes(b"this is no database at all" * 200)
    with pytest.raises(DamagedError):
        connect(foreign)


def test_migrating_twice_changes_nothing_and_a_backup_is_a_database(tmp_path: Path) -> None:
    path = tmp_path / FILE_NAME
    connection = connect(path)
    assert migrate(connection, path) == 0
    assert migrate(connection, path) == len(migrations())

    assert backup(path, tmp_path / "copy.db") > 0
    with pytest.raises(StoreError, match="exists already"):
        backup(path, tmp_path / "copy.db")
    copy = connect(tmp_path / "copy.db")
    assert migrate(copy, tmp_path / "copy.db") == len(migrations())
    copy.close()
    connection.close()


@pytest.mark.parametrize("committing", [False, True])
@pytest.mark.parametrize("error", [IndexError("bug"), InvalidRequestError("half-way")])
async def test_an_answer_that_breaks_the_engine_fails_its_instance_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, committing: bool
) -> None:
    runtime, writer = open_runtime(tmp_path)
    await start(runtime, "run")
    await start(runtime, "other")
    (item, other) = take(runtime)
    runtime.dispatcher.streams.clear()  # nobody takes what the reset finds before this test does

    def half_way(changes: Changes, world: World, instance: Instance, *_: object) -> None:
        instance.name = "half-way"
        changes.touch(instance)
        raise error

    if committing:
        hub = runtime.hub("h")
        request = pb.CreateInstanceRequest(instanceId="third", name="x")
        runtime.change(lambda changes, world, now: lifecycle.start(changes, world, hub, request, now))
        await asyncio.sleep(0)  # its commit is under way
    with monkeypatch.context() as patch:
        patch.setattr(turns, "complete", half_way)
        with pytest.raises(UnusableAnswerError):
            answer(runtime, item, ACTIVITY)
    await runtime.answers.refused()

    rows = dict(writer.execute("SELECT id, status FROM instance").fetchall())
    assert rows == {"run": FAILED, "other": PENDING} | ({"third": PENDING} if committing else {})
    names = writer.execute("SELECT DISTINCT name FROM instance").fetchall()
    assert names == [("x",)]
    assert answer(runtime, other, ACTIVITY) is False  # its turn was undone too, and goes out again
    again = take(runtime)
    assert "other" in [one.orchestratorRequest.instanceId for one in again]
    runtime.close()
    writer.close()


async def test_values_that_the_file_does_not_take_fail_their_batch_and_no_other(tmp_path: Path) -> None:
    runtime, writer = open_runtime(tmp_path)
    runtime.journal.changes.rows.append(("delete_timer", (2**70,)))
    with pytest.raises(NotDurableError):
        await runtime.journal.commit()
    await start(runtime, "run")
    assert len(take(runtime)) == 1
    runtime.close()
    writer.close()


async def test_a_backup_never_replaces_a_file(tmp_path: Path) -> None:
    runtime, writer = open_runtime(tmp_path)
    await start(runtime, "run")
    precious = tmp_path / "precious.partial"
    precious.write_text("mine")
    dangling = tmp_path / "link"
    dangling.symlink_to(tmp_path / "nowhere")
    for taken in (precious, dangling):
        with pytest.raises(StoreError, match="exists"):
            backup(tmp_path / FILE_NAME, taken)
    backup(tmp_path / FILE_NAME, tmp_path / "precious")

    assert precious.read_text() == "mine"
    assert not (tmp_path / "nowhere").exists()
    assert not [name for name in os.listdir(tmp_path) if name.startswith((".precious", ".link"))]
    runtime.close()
    writer.close()


async def test_an_instance_that_was_terminated_before_its_first_turn_is_restarted_with_its_input(
    tmp_path: Path,
) -> None:
    runtime, writer = open_runtime(tmp_path)
    hub = runtime.hub("h")
    request = pb.CreateInstanceRequest(instanceId="run", name="x", input=StringValue(value='"mine"'))
    runtime.change(lambda changes, world, now: lifecycle.start(changes, world, hub, request, now))
    runtime.change(
        lambda changes, world, now: control.terminate(
            changes, world, hub, "run", None, recursive=False, now=now
        )
    )
    await runtime.journal.commit()
    runtime.close()
    writer.close()

    runtime, writer = open_runtime(tmp_path)
    ended = runtime.world.instance(hub, "run")
    assert ended is not None
    assert runtime.world.load_input(ended) == '"mine"'
    runtime.change(
        lambda changes, world, now: control.restart(changes, world, hub, "run", new_id=False, now=now)
    )
    await runtime.journal.commit()
    (turn,) = take(runtime)
    starts = [event.executionStarted for event in turn.orchestratorRequest.newEvents]
    assert [start.input.value for start in starts if start.name] == ['"mine"']
    runtime.close()
    writer.close()
