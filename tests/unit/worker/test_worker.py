"""The worker under the SDK's own dispatcher: what it answers when code raises what the SDK can't tell."""

from __future__ import annotations

import asyncio
from typing import Any

import durabletask.internal.orchestrator_service_pb2 as pb
import pytest
from tests.unit.worker.simulator import make_worker
from tests.unit.worker.test_keeper import Scheduler, UnspeakableError

from towline.contracts.errors import PayloadStoreAwayError
from towline.worker import sdk
from towline.worker.sdk.execution import _Answering

TROUBLE: dict[str, BaseException] = {
    "unspeakable": UnspeakableError(),
    "half_a_pair": ValueError("the model said \ud83d"),
    "exits": SystemExit(2),
    "cancels": asyncio.CancelledError(),
}
trouble = pytest.mark.parametrize("error", TROUBLE.values(), ids=TROUBLE)


def breaking(error: BaseException) -> Any:
    def breaks(_: Any, __: Any) -> Any:
        raise error

    return breaks


@trouble
def test_an_activity_is_answered_whatever_it_raises(error: BaseException) -> None:
    worker, stub = make_worker(), _Answering()
    worker.add_activity(breaking(error))
    worker._execute_activity(pb.ActivityRequest(name="breaks", taskId=1), stub, "token")
    answer = stub.taken()
    assert answer.method == "CompleteActivityTask"
    assert answer.message.failureDetails.errorMessage


@trouble
def test_an_entity_is_answered_for_whatever_it_raises(error: BaseException) -> None:
    worker, stub = make_worker(), _Answering()
    worker.add_entity(breaking(error))
    operation = pb.OperationRequest(operation="touch", requestId="1")
    batch = pb.EntityBatchRequest(instanceId="@breaks@1", operations=[operation])
    worker._execute_entity_batch(batch, stub, "token")
    (result,) = stub.taken().message.results
    assert result.failure.failureDetails.errorMessage


@trouble
def test_a_run_has_failed_whatever_it_raises(error: BaseException) -> None:
    worker, stub = make_worker(), _Answering()
    worker.add_orchestrator(breaking(error))
    worker._execute_orchestrator(Scheduler("breaks").request(), stub, "token")
    action = sdk.completion(stub.taken().message)
    assert action is not None
    assert action.orchestrationStatus == pb.ORCHESTRATION_STATUS_FAILED
    assert worker.outlet.sent[-1].event.id == "run-1/outcome"  # type: ignore[attr-defined]


def test_while_the_payload_store_is_away_nothing_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: Any) -> None:
        raise PayloadStoreAwayError("not now")

    worker, stub = make_worker(), _Answering()
    monkeypatch.setattr("durabletask.worker.payload_helpers.deexternalize_payloads", away)
    monkeypatch.setattr(worker, "_payload_store", object())
    with pytest.raises(PayloadStoreAwayError):
        worker._execute_activity(pb.ActivityRequest(name="breaks", taskId=1), stub, "token")
    assert stub.answer is None
