"""What a turn has called of an entity runs while the turn is being committed (decision 0015)."""

from __future__ import annotations

import asyncio
import multiprocessing
import sqlite3
from collections.abc import AsyncGenerator, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from durabletask.internal import orchestrator_service_pb2 as pb
from google.protobuf import wrappers_pb2
from tests.unit.scheduler.test_store import answer, attached, given, open_runtime, start

from towline.scheduler.engine.errors import NotDurableError
from towline.scheduler.server.runtime import Runtime
from towline.scheduler.store import failpoints
from towline.scheduler.store.database import connect

ENTITY = "@counter@one"


def call(entity_id: str = ENTITY, request_id: str = "r1") -> pb.OrchestratorAction:
    called = pb.EntityOperationCalledEvent(
        requestId=request_id,
        operation="add",
        targetInstanceId=wrappers_pb2.StringValue(value=entity_id),
    )
    return pb.OrchestratorAction(
        id=1, sendEntityMessage=pb.SendEntityMessageAction(entityOperationCalled=called)
    )


@dataclass
class Worker:
    """Takes all that it is given. What is not written at once comes by `take`."""

    runtime: Runtime
    writer: sqlite3.Connection
    ahead: list[pb.WorkItem] = field(default_factory=list[pb.WorkItem])
    """What came while its commit was still to be made."""
    stored: list[int] = field(default_factory=list[int])
    """Operations that the file had when each of `ahead` was written."""
    tells: Path | None = None
    """Gets the last of `ahead`."""

    def __post_init__(self) -> None:
        self.stream = attached(self.runtime)
        self.stream.write = self._write_now

    def take(self) -> list[pb.WorkItem]:
        return given(self.runtime, self.stream)

    def _write_now(self) -> None:
        self.ahead += self.take()
        with connect(self.runtime.path, readonly=True) as reader:
            self.stored.append(reader.execute("SELECT count(*) FROM operation").fetchone()[0])
        if self.tells is not None:
            self.tells.write_bytes(self.ahead[-1].SerializeToString())

    async def first_turns(self, *run_ids: str) -> list[pb.WorkItem]:
        """The first turns of runs that are started."""
        for run_id in run_ids:
            await start(self.runtime, run_id)
        return self.take()

    def answer_batch(self, item: pb.WorkItem) -> bool:
        success = pb.OperationResult(success=pb.OperationResultSuccess())
        result = pb.EntityBatchResult(
            results=[success],
            entityState=wrappers_pb2.StringValue(value="1"),
            completionToken=item.completionToken,
        )
        return self.runtime.answers.complete_batch(result)


@contextmanager
def working(folder: Path) -> Generator[Worker]:
    """A runtime on a folder, and its worker."""
    runtime, writer = open_runtime(folder)
    yield Worker(runtime, writer)
    runtime.close()
    writer.close()


@pytest.fixture
async def worker(tmp_path: Path) -> AsyncGenerator[Worker]:
    with working(tmp_path) as one:
        yield one


def kinds(items: list[pb.WorkItem]) -> list[str | None]:
    return [item.WhichOneof("request") for item in items]


async def test_a_called_entitys_batch_goes_out_before_its_turn_is_on_disk(worker: Worker) -> None:
    runtime = worker.runtime
    (turn,) = await worker.first_turns("run")

    assert answer(runtime, turn, call())
    await runtime.journal.commit()

    assert kinds(worker.ahead) == ["entityRequest"]
    assert worker.stored == [0]
    assert worker.take() == [], "it goes out once"
    assert worker.answer_batch(worker.ahead[0])
    await runtime.journal.commit()
    assert kinds(worker.take()) == ["orchestratorRequest"]


async def test_the_next_turn_waits_until_the_result_is_on_disk(worker: Worker) -> None:
    """A turn publishes what it has decided: it must not see what may yet be undone."""
    runtime = worker.runtime
    (turn,) = await worker.first_turns("run")
    answer(runtime, turn, call())
    await runtime.journal.commit()
    ahead = list(worker.ahead)

    worker.answer_batch(ahead[0])
    await runtime.journal.commit()

    assert worker.ahead == ahead


async def test_what_several_turns_have_called_goes_out_after_their_common_commit(worker: Worker) -> None:
    runtime = worker.runtime
    turns = await worker.first_turns("run", "other")

    for number, turn in enumerate(turns):
        answer(runtime, turn, call(f"@counter@{number}", f"r{number}"))
    await runtime.journal.commit()

    assert worker.ahead == []
    assert kinds(worker.take()) == ["entityRequest", "entityRequest"]


async def test_a_clients_signal_is_on_disk_before_it_runs(worker: Worker) -> None:
    """Its sender is told if it is not accepted, and then it must not have run."""
    runtime = worker.runtime
    (turn,) = await worker.first_turns("run")

    runtime.signal(runtime.hub("h"), pb.SignalEntityRequest(instanceId=ENTITY, name="add", requestId="s"))
    answer(runtime, turn, call())
    await runtime.journal.commit()

    assert worker.ahead == []
    (batch,) = worker.take()
    assert len(batch.entityRequest.operations) == 2


async def test_a_signal_that_comes_while_a_batch_is_on_its_way_out_waits_for_its_own_commit(
    worker: Worker,
) -> None:
    runtime = worker.runtime
    hub = runtime.hub("h")
    runtime.signal(hub, pb.SignalEntityRequest(instanceId=ENTITY, name="first", requestId="s1"))
    await runtime.journal.commit()

    runtime.signal(hub, pb.SignalEntityRequest(instanceId=ENTITY, name="second", requestId="s2"))
    (batch,) = worker.take()
    await runtime.journal.commit()
    assert worker.answer_batch(batch)
    await runtime.journal.commit()
    (following,) = worker.take()

    names = [[op.operation for op in item.entityRequest.operations] for item in (batch, following)]
    assert names == [["first"], ["second"]]


async def test_nothing_goes_out_under_row_numbers_that_might_be_given_out_again(tmp_path: Path) -> None:
    with working(tmp_path) as worker:
        await worker.first_turns("run")

    # The first row that a server needs after its start is reserved by the batch that needs it.
    with working(tmp_path) as worker:
        (turn,) = worker.take()
        answer(worker.runtime, turn, call())
        await worker.runtime.journal.commit()

        assert worker.ahead == []
        assert kinds(worker.take()) == ["entityRequest"]


@pytest.mark.parametrize("boundary", ["apply.before", "commit.before"])
async def test_a_failed_commit_voids_what_went_out_ahead_and_the_next_one_sends_nothing_ahead(
    worker: Worker, boundary: str
) -> None:
    runtime = worker.runtime
    (turn,) = await worker.first_turns("run")
    failpoints.arm(boundary, "error")

    answer(runtime, turn, call())
    with pytest.raises(NotDurableError):
        await runtime.journal.commit()
    await asyncio.sleep(0)  # the reset runs in the next turn of the loop

    (ahead,) = worker.ahead
    assert worker.answer_batch(ahead) is False
    (again,) = worker.take()
    assert again.orchestratorRequest.instanceId == "run"
    answer(runtime, again, call())
    await runtime.journal.commit()
    assert len(worker.ahead) == 1, "a full disk would have it run for nothing at each attempt"
    (batch,) = worker.take()
    assert worker.answer_batch(batch)
    assert worker.answer_batch(ahead) is False
    await runtime.journal.commit()
    assert worker.writer.execute("SELECT state, turn FROM entity").fetchall() == [("1", 1)]


def crash(folder: str, told: str) -> None:
    """A process that is killed after a batch went out and before its turn is on disk."""

    async def main() -> None:
        worker = Worker(*open_runtime(Path(folder)))
        (turn,) = await worker.first_turns("run")
        failpoints.arm("apply.before", "kill")
        worker.tells = Path(told)
        answer(worker.runtime, turn, call())
        await worker.runtime.journal.commit()

    asyncio.run(main())


async def test_a_kill_before_the_commit_leaves_an_answer_that_counts_for_nothing(tmp_path: Path) -> None:
    told = tmp_path / "ahead"
    process = multiprocessing.get_context("spawn").Process(target=crash, args=(str(tmp_path), str(told)))
    process.start()
    await asyncio.to_thread(process.join, 30)
    assert process.exitcode == -9
    ahead = pb.WorkItem.FromString(told.read_bytes())

    with working(tmp_path) as worker:
        runtime = worker.runtime
        assert worker.answer_batch(ahead) is False
        (turn,) = worker.take()
        answer(runtime, turn, call())
        await runtime.journal.commit()
        assert worker.answer_batch(ahead) is False
        (batch,) = worker.take()
        assert batch.entityRequest.operations[0].requestId == ahead.entityRequest.operations[0].requestId
        assert worker.answer_batch(batch)
        await runtime.journal.commit()
        assert kinds(worker.take()) == ["orchestratorRequest"]
