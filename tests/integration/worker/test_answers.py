"""Every work item is answered, whatever the code in it raises: one that is not is worked at for hours."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from durabletask.internal import orchestrator_service_pb2 as pb
from tests.integration.worker.test_stream import Listening, dispatching
from tests.waiting import eventually_async

from towline.worker.worker import TowlineWorker


class UnspeakableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no message")


TROUBLE: dict[str, BaseException] = {
    "unspeakable": UnspeakableError(),
    "half_a_pair": ValueError("the model said \ud83d"),
    "exits": SystemExit(2),
    "cancels": asyncio.CancelledError(),
}
trouble = pytest.mark.parametrize("kind", TROUBLE)


def activity(name: str, token: str) -> pb.WorkItem:
    return pb.WorkItem(completionToken=token, activityRequest=pb.ActivityRequest(name=name, taskId=1))


@trouble
async def test_an_activity_is_answered_whatever_it_raises(kind: str) -> None:
    def breaks(_context: Any, _: Any) -> None:
        raise TROUBLE[kind]

    service = Listening(activity("breaks", "broken"), activity("length", "another"))
    async with dispatching(service, set_up=lambda worker: worker.add_activity(breaks)) as made:
        await eventually_async(lambda: len(service.answers) == 2)
        assert made.is_alive
    assert service.answers["broken"].failureDetails.errorMessage


@trouble
async def test_an_operation_of_an_entity_is_answered_whatever_it_raises(kind: str) -> None:
    def brittle(_context: Any, _: Any) -> None:
        raise TROUBLE[kind]

    def set_up(worker: TowlineWorker) -> None:
        worker.add_entity(brittle)

    operation = pb.OperationRequest(operation="touch", requestId="1")
    batch = pb.EntityBatchRequest(instanceId="@brittle@1", operations=[operation])
    service = Listening(pb.WorkItem(completionToken="broken", entityRequest=batch))
    async with dispatching(service, set_up=set_up) as made:
        await eventually_async(lambda: service.answers)
        assert made.is_alive
    (result,) = service.answers["broken"].results
    assert result.failure.failureDetails.errorMessage
