"""A worker that is back after a short break of its connection keeps what it has in hand."""

from __future__ import annotations

import sqlite3
from typing import Any

import pytest
from durabletask.internal import orchestrator_service_pb2 as pb
from tests.unit.scheduler.test_store import ACTIVITY, answer, given, start
from tests.waiting import eventually_async

from towline.scheduler.server.dispatch import Stream
from towline.scheduler.server.runtime import Leases, Runtime

SIGNAL = pb.SignalEntityRequest(instanceId="@counter@one", name="add", requestId="r")


@pytest.fixture
def runtime(opened: tuple[Runtime, sqlite3.Connection], monkeypatch: pytest.MonkeyPatch) -> Runtime:
    runtime, _ = opened
    runtime.leases = Leases(grace_s=0.05, reconnect_s=0.05)
    monkeypatch.setattr("towline.scheduler.server.losses._ARRIVED_S", 0.0)
    return runtime


def connected(runtime: Runtime, worker: str, *, repeats_reports: bool = True) -> Stream:
    stream = Stream(runtime.hub("h"), worker, (9, 9, 9), (None, None, None), repeats_reports=repeats_reports)
    runtime.dispatcher.attach(stream)
    return stream


async def in_hand(runtime: Runtime, stream: Stream) -> dict[str, pb.WorkItem]:
    """An activity and an entity batch that `stream` has been given."""
    await start(runtime, "run")
    (turn,) = given(runtime, stream)
    answer(runtime, turn, ACTIVITY)
    runtime.signal(runtime.hub("h"), SIGNAL)
    await runtime.journal.commit()
    items = {str(item.WhichOneof("request")): item for item in given(runtime, stream)}
    assert set(items) == {"activityRequest", "entityRequest"}
    return items


def take_results(runtime: Runtime, items: dict[str, pb.WorkItem]) -> list[Any]:
    activity, batch = items["activityRequest"], items["entityRequest"]
    result = pb.EntityBatchResult(completionToken=batch.completionToken)
    result.results.add().success.SetInParent()
    done = pb.ActivityResponse(completionToken=activity.completionToken, taskId=1, instanceId="run")
    return [runtime.answers.complete_activity(done), runtime.answers.complete_batch(result)]


async def waits_are_over(runtime: Runtime) -> None:
    """What the loop was asked to do after grace and reconnect time is done."""
    over: list[bool] = []
    runtime.loop.call_later(0.3, over.append, True)
    await eventually_async(lambda: over)


async def test_a_worker_that_reports_until_it_is_heard_is_asked_once_however_long_it_takes(
    runtime: Runtime,
) -> None:
    before = connected(runtime, "w")
    items = await in_hand(runtime, before)
    runtime.losses.detach(before)
    again, other = connected(runtime, "w"), connected(runtime, "other")
    await waits_are_over(runtime)

    assert given(runtime, again) == given(runtime, other) == []
    assert (runtime.dispatcher.redeliveries, again.outstanding) == (0, [0, 1, 1])
    assert take_results(runtime, items) == [True, True]
    await runtime.journal.commit()
    assert again.outstanding[1:] == [0, 0], "it has room again"
    (turn,) = [*given(runtime, again), *given(runtime, other)]
    assert turn.orchestratorRequest.newEvents[-1].HasField("taskCompleted")


async def test_what_it_has_goes_to_others_when_it_is_gone_for_good(runtime: Runtime) -> None:
    before = connected(runtime, "w")
    await in_hand(runtime, before)
    runtime.losses.detach(before)
    again = connected(runtime, "w")
    await waits_are_over(runtime)
    runtime.losses.detach(again)
    other = connected(runtime, "other")
    await eventually_async(lambda: len(other.pending) == 2, "both are handed out again", timeout_s=5)


async def test_what_it_keeps_past_its_lease_goes_to_others(runtime: Runtime) -> None:
    runtime.leases = Leases(grace_s=0.05, activity_s=0.4, entity_s=0.4)
    before = connected(runtime, "w")
    await in_hand(runtime, before)
    runtime.losses.detach(before)
    again = connected(runtime, "w")
    await waits_are_over(runtime)
    await eventually_async(lambda: runtime.losses.expire() or len(again.pending) == 2, timeout_s=5)


@pytest.mark.parametrize("unsure", ["a worker that reports once", "what may never have arrived"])
async def test_what_may_never_be_answered_is_handed_out_again(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch, unsure: str
) -> None:
    repeats_reports = unsure == "what may never have arrived"
    if repeats_reports:
        monkeypatch.setattr("towline.scheduler.server.losses._ARRIVED_S", 60.0)
    before = connected(runtime, "w", repeats_reports=repeats_reports)
    await in_hand(runtime, before)
    runtime.losses.detach(before)
    again = connected(runtime, "w", repeats_reports=repeats_reports)
    await eventually_async(lambda: len(again.pending) == 2, "both are handed out again", timeout_s=5)
    assert runtime.dispatcher.redeliveries == 2
