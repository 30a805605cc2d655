"""Large payloads of work items: put aside, fetched, and what is answered when that can't be done."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any

import durabletask.internal.orchestrator_service_pb2 as pb
import pytest
from google.protobuf import wrappers_pb2
from tests.unit.payloads.test_store import folder_store

from towline.contracts.errors import PayloadMissingError, PayloadTooLargeError
from towline.contracts.payloads import PayloadReference, is_reference
from towline.worker import sdk
from towline.worker.errors import TurnAbandonedError
from towline.worker.payloads import ItemPayloads

LARGE = '"' + "ä" * 3_000 + '"'
MISSING = str(PayloadReference("0" * 64, 9))


def text(value: str) -> wrappers_pb2.StringValue:
    return wrappers_pb2.StringValue(value=value)


def completed(result: str) -> pb.OrchestratorResponse:
    complete = pb.CompleteOrchestrationAction(
        orchestrationStatus=pb.ORCHESTRATION_STATUS_COMPLETED, result=text(result)
    )
    return pb.OrchestratorResponse(
        instanceId="i", actions=[pb.OrchestratorAction(completeOrchestration=complete)]
    )


def history_with(value: str) -> pb.OrchestratorRequest:
    request = pb.OrchestratorRequest(instanceId="i")
    request.pastEvents.add().taskCompleted.result.CopyFrom(text(value))
    request.newEvents.add().eventRaised.input.CopyFrom(text('"small"'))
    return request


async def test_what_is_large_is_put_aside_and_comes_back_and_what_is_small_stays(tmp_path: Path) -> None:
    payloads = ItemPayloads(folder_store(tmp_path / "p"), inline_bytes=1_024)
    answer = completed(LARGE)
    await payloads.keep(answer)
    token = answer.actions[0].completeOrchestration.result.value
    assert is_reference(token)
    request = history_with(token)
    await payloads.fetch(request)
    assert request.pastEvents[0].taskCompleted.result.value == LARGE
    assert request.newEvents[0].eventRaised.input.value == '"small"'


async def test_without_a_store_messages_are_left_as_they_are() -> None:
    payloads = ItemPayloads(None, inline_bytes=10)
    request, answer = history_with(MISSING), completed(LARGE)
    await payloads.fetch(request)
    await payloads.keep(answer)
    payloads.check(answer)
    assert not payloads.enabled
    assert request == history_with(MISSING)
    assert answer == completed(LARGE)


async def test_json_that_reads_like_a_reference_is_data(tmp_path: Path) -> None:
    payloads = ItemPayloads(folder_store(tmp_path / "p"), inline_bytes=1_024)
    for value in (f'"{MISSING}"', f'{{"a": "{MISSING}"}}', f"[{MISSING}]"):
        request = history_with(value)
        await payloads.fetch(request)
        assert request == history_with(value)


async def test_a_payload_that_is_gone_is_told_at_once(tmp_path: Path) -> None:
    payloads = ItemPayloads(folder_store(tmp_path / "p"), inline_bytes=1_024)
    with pytest.raises(PayloadMissingError):
        await payloads.fetch(history_with(MISSING))


async def test_a_turn_waits_for_its_store_and_goes_on(tmp_path: Path) -> None:
    payloads = ItemPayloads(folder_store(tmp_path / "p"), inline_bytes=1_024)
    shutil.rmtree(tmp_path / "p")
    keeping = asyncio.create_task(payloads.keep(completed(LARGE)))
    _, pending = await asyncio.wait({keeping}, timeout=0.15)
    assert pending, "it waits"
    (tmp_path / "p").mkdir()
    await asyncio.wait_for(keeping, 20)


async def test_a_turn_is_left_when_its_patience_is_over(tmp_path: Path) -> None:
    payloads = ItemPayloads(folder_store(tmp_path / "p"), inline_bytes=1_024)
    shutil.rmtree(tmp_path / "p")
    with pytest.raises(TurnAbandonedError, match="store was away"):
        await payloads.keep(completed(LARGE), patience_s=0.05)


async def test_more_than_the_store_takes_is_refused_before_anything_is_said(tmp_path: Path) -> None:
    payloads = ItemPayloads(folder_store(tmp_path / "p", max_bytes=4_000), inline_bytes=1_024)
    payloads.check(completed('"' + "x" * 3_900 + '"'))
    with pytest.raises(PayloadTooLargeError, match="TOWLINE_PAYLOADS_MAX_BYTES"):
        payloads.check(completed(LARGE))


def test_a_failed_turn_ends_its_instance_with_the_error() -> None:
    answer = sdk.failed_turn(history_with(MISSING), "token", PayloadMissingError("gone"))
    action = sdk.completion(answer)
    assert action is not None
    assert action.orchestrationStatus == pb.ORCHESTRATION_STATUS_FAILED
    assert (action.failureDetails.errorType, action.failureDetails.errorMessage) == (
        "PayloadMissingError",
        "gone",
    )
    assert (answer.instanceId, answer.completionToken) == ("i", "token")


def test_a_failed_activity_and_a_failed_batch_answer_all_that_was_asked_and_keep_the_state() -> None:
    activity = pb.ActivityRequest(
        name="a", taskId=7, orchestrationInstance=pb.OrchestrationInstance(instanceId="i")
    )
    answer: Any = sdk.failed_activity(activity, "token", PayloadMissingError("gone")).message
    assert (answer.taskId, answer.failureDetails.errorType) == (7, "PayloadMissingError")
    batch = pb.EntityBatchRequest(
        instanceId="@e@k",
        entityState=text(MISSING),
        operations=[pb.OperationRequest(), pb.OperationRequest()],
    )
    result: Any = sdk.failed_batch(batch, "token", PayloadMissingError("gone")).message
    assert [one.failure.failureDetails.errorMessage for one in result.results] == ["gone", "gone"]
    assert result.entityState.value == MISSING
