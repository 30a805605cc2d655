"""While a commit is under way, nothing goes out that builds on what may yet be undone."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest
from durabletask.internal import orchestrator_service_pb2 as pb
from google.protobuf import wrappers_pb2
from tests.unit.scheduler.test_store import (
    ACTIVITY,
    answer,
    attached,
    given,
    raise_event,
    raised,
    start,
)
from tests.waiting import eventually_async

from towline.scheduler.server.runtime import Runtime
from towline.scheduler.store import failpoints

ENTITY = "@counter@one"


class SlowDisk:
    """Commits are made on the thread, and end one by one, when the test lets them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._may_end = threading.Semaphore(0)
        self._under_way = 0
        self._patch = monkeypatch

    def __call__(self, runtime: Runtime) -> None:
        self._patch.setattr(runtime.journal, "_quick_s", 0.0)
        self._patch.setattr(failpoints, "hit", self._hit)

    def _hit(self, name: str) -> None:
        if name == "commit.after":
            self._under_way += 1
            self._may_end.acquire()

    async def is_writing(self, number: int) -> None:
        """Wait until the `number`-th commit is being made."""
        await eventually_async(
            lambda: self._under_way == number, f"commit {number} is under way", every_s=0.001
        )

    def end_one(self) -> None:
        self._may_end.release()

    def end_all(self) -> None:
        self._may_end.release(1_000)


@pytest.fixture
def slow_disk(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowDisk]:
    del runtime  # closed when its commits have ended
    disk = SlowDisk(monkeypatch)
    yield disk
    disk.end_all()


async def test_a_turn_does_not_go_out_before_the_one_that_it_follows_is_on_disk(
    runtime: Runtime, slow_disk: SlowDisk
) -> None:
    """It would publish what it decides from a history that a full disk or a crash undoes."""
    await start(runtime, "run")
    stream = attached(runtime)
    (first,) = given(runtime, stream)
    slow_disk(runtime)

    event = asyncio.create_task(raise_event(runtime, "meanwhile"))
    await slow_disk.is_writing(1)
    answer(runtime, first, ACTIVITY)
    slow_disk.end_one()
    await event
    await slow_disk.is_writing(2)

    assert given(runtime, stream) == []
    slow_disk.end_all()
    await runtime.journal.commit()
    turns = [item for item in given(runtime, stream) if item.HasField("orchestratorRequest")]
    assert [raised(turn) for turn in turns] == [["meanwhile"]]
    assert any(event.HasField("taskScheduled") for event in turns[0].orchestratorRequest.pastEvents)


async def test_a_batch_does_not_go_out_with_a_state_that_is_not_on_disk(
    runtime: Runtime, slow_disk: SlowDisk
) -> None:
    stream = attached(runtime)
    await signal(runtime, "first")
    (batch,) = given(runtime, stream)
    slow_disk(runtime)

    second = asyncio.create_task(signal(runtime, "second"))
    await slow_disk.is_writing(1)
    result = pb.EntityBatchResult(
        results=[pb.OperationResult(success=pb.OperationResultSuccess())],
        entityState=wrappers_pb2.StringValue(value="after the first"),
        completionToken=batch.completionToken,
    )
    assert runtime.answers.complete_batch(result)
    slow_disk.end_one()
    await second
    await slow_disk.is_writing(2)

    assert given(runtime, stream) == []
    slow_disk.end_all()
    await runtime.journal.commit()
    (following,) = given(runtime, stream)
    assert following.entityRequest.entityState.value == "after the first"
    assert [op.operation for op in following.entityRequest.operations] == ["second"]


async def signal(runtime: Runtime, name: str) -> None:
    hub = runtime.hub("h")
    runtime.signal(hub, pb.SignalEntityRequest(instanceId=ENTITY, name=name, requestId=name))
    await runtime.journal.commit()
