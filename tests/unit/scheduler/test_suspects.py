"""What ends its workers is failed; what was in their hands with it is not."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable

import pytest
from durabletask.internal import orchestrator_service_pb2 as pb
from tests.unit.scheduler.test_store import answer, attached, given, start

from towline.scheduler.engine.model import COMPLETED, FAILED
from towline.scheduler.server.dispatch import Dispatcher, Kind, Stream, Work
from towline.scheduler.server.runtime import Runtime

DEADLY = "deadly"
INNOCENT = [f"innocent{number}" for number in range(20)]


def status_of(writer: sqlite3.Connection) -> dict[str, int]:
    return dict(writer.execute("SELECT id, status FROM instance").fetchall())


def first_turn_is_deadly(item: pb.WorkItem) -> bool:
    return item.orchestratorRequest.instanceId == DEADLY


def activity_is_deadly(item: pb.WorkItem) -> bool:
    return item.activityRequest.orchestrationInstance.instanceId == DEADLY


async def answer_all(runtime: Runtime, items: list[pb.WorkItem], *, schedule: bool) -> None:
    for item in items:
        if item.HasField("activityRequest"):
            runtime.answers.complete_activity(pb.ActivityResponse(completionToken=item.completionToken))
        elif schedule and len(item.orchestratorRequest.pastEvents) == 0:
            answer(
                runtime, item, pb.OrchestratorAction(id=1, scheduleTask=pb.ScheduleTaskAction(name="work"))
            )
        else:
            failed = any(event.HasField("taskFailed") for event in item.orchestratorRequest.newEvents)
            end = pb.CompleteOrchestrationAction(orchestrationStatus=FAILED if failed else COMPLETED)
            answer(runtime, item, pb.OrchestratorAction(id=2, completeOrchestration=end))
    await runtime.journal.commit()


@pytest.mark.parametrize(
    ("is_deadly", "schedule"), [(first_turn_is_deadly, False), (activity_is_deadly, True)]
)
@pytest.mark.parametrize("first", [True, False])
async def test_a_run_that_ends_every_worker_takes_no_other_with_it(
    runtime: Runtime,
    writer: sqlite3.Connection,
    is_deadly: Callable[[pb.WorkItem], bool],
    *,
    schedule: bool,
    first: bool,
) -> None:
    """All that ten workers had when they were ended by one run was failed with it."""
    for instance_id in [DEADLY, *INNOCENT] if first else [*INNOCENT, DEADLY]:
        await start(runtime, instance_id)

    for number in range(100):  # workers, one after the other: an orchestrator starts them anew
        stream = attached(runtime, f"worker{number}")
        while items := given(runtime, stream):
            if any(map(is_deadly, items)):
                break
            await answer_all(runtime, items, schedule=schedule)
        runtime.losses.detach(stream)
        await runtime.journal.commit()
        if not items and all(status in {COMPLETED, FAILED} for status in status_of(writer).values()):
            break
        stream.pending.clear()

    assert status_of(writer) == {**dict.fromkeys(INNOCENT, COMPLETED), DEADLY: FAILED}


def work(name: str, *, suspect: bool) -> Work:
    return Work(Kind.ACTIVITY, 1, "x", "", (1, name), suspect=suspect)


def test_a_worker_that_survives_a_suspect_for_a_while_gets_the_next_one() -> None:
    """Else those that take an hour each would be done one after the other."""
    dispatcher = Dispatcher()
    stream = Stream(1, "w", (10, 10, 10), (None, None, None))
    dispatcher.attach(stream)
    for name in ("one", "two"):
        dispatcher.offer(work(name, suspect=True))
    dispatcher.offer(work("innocent", suspect=False))
    for taken in list(stream.pending):
        assert taken is not None
        taken.token, taken.lease_s, taken.deadline = str(taken.subject), 1000.0, 1000.0  # sent at 0
        dispatcher.sent(stream, taken)
    stream.pending.clear()
    assert sorted(stream.held) == ["(1, 'innocent')", "(1, 'one')"]

    assert dispatcher.expired(now=10.0) == []
    assert not stream.pending
    assert dispatcher.expired(now=40.0) == []

    assert [one.subject for one in stream.pending if one is not None] == [(1, "two")]
