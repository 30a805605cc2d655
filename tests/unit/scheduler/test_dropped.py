"""What can be neither done nor refused is told in the log."""

from __future__ import annotations

import pytest
from durabletask.internal import orchestrator_service_pb2 as pb
from google.protobuf.wrappers_pb2 import StringValue
from tests.unit.scheduler.test_store import attached, given

from towline.scheduler.engine.errors import NotDurableError
from towline.scheduler.server.dispatch import Stream
from towline.scheduler.server.runtime import Runtime
from towline.scheduler.store import failpoints

ENTITY = "@agent@session"


async def signal(runtime: Runtime, size: int = 1) -> None:
    request = pb.SignalEntityRequest(instanceId=ENTITY, name="run", input=StringValue(value="x" * size))
    runtime.signal(runtime.hub("h"), request)
    await runtime.journal.commit()


async def answer(runtime: Runtime, stream: Stream, result: pb.EntityBatchResult) -> None:
    (batch,) = given(runtime, stream)
    result.completionToken = batch.completionToken
    assert runtime.answers.complete_batch(result)
    await runtime.journal.commit()


def done(state: str, *actions: pb.OperationAction) -> pb.EntityBatchResult:
    success = pb.OperationResult(success=pb.OperationResultSuccess())
    return pb.EntityBatchResult(results=[success], entityState=StringValue(value=state), actions=actions)


def told(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    return [(one.id, one.error) for one in caplog.records if one.message == "message.dropped"]  # type: ignore[attr-defined]


async def test_a_signal_that_fits_into_no_work_item_beside_the_state(
    runtime: Runtime, caplog: pytest.LogCaptureFixture
) -> None:
    """Its sender asked after its result for ever, and nobody was told why there was none."""
    stream = attached(runtime)
    await signal(runtime)
    await answer(runtime, stream, done("x" * 2_000_000))

    await signal(runtime, 3_000_000)
    assert given(runtime, stream) == []
    await runtime.journal.commit()

    ((entity_id, why),) = told(caplog)
    assert entity_id == ENTITY
    assert "the limit is" in why


async def test_signals_of_a_batch_that_failed_as_a_whole(
    runtime: Runtime, caplog: pytest.LogCaptureFixture
) -> None:
    stream = attached(runtime)
    await signal(runtime)
    failure = pb.TaskFailureDetails(errorType="Broken", errorMessage="no such entity")
    await answer(runtime, stream, pb.EntityBatchResult(failureDetails=failure))

    assert told(caplog) == [(ENTITY, "Broken: no such entity")]


@pytest.mark.parametrize(
    "action",
    [
        pb.OperationAction(sendSignal=pb.SendSignalAction(instanceId="nobody", name="run")),
        pb.OperationAction(startNewOrchestration=pb.StartNewOrchestrationAction(instanceId="@e@x", name="x")),
    ],
)
async def test_what_an_entity_sends_to_an_id_that_is_none(
    runtime: Runtime, caplog: pytest.LogCaptureFixture, action: pb.OperationAction
) -> None:
    stream = attached(runtime)
    await signal(runtime)
    await answer(runtime, stream, done("x", action))

    assert [one for one, _ in told(caplog)] == [
        action.sendSignal.instanceId or action.startNewOrchestration.instanceId
    ]


async def test_nothing_that_was_undone_is_told(runtime: Runtime, caplog: pytest.LogCaptureFixture) -> None:
    stream = attached(runtime)
    await signal(runtime)
    failure = pb.TaskFailureDetails(errorType="Broken", errorMessage="no such entity")
    failpoints.arm("commit.before", "error")
    with pytest.raises(NotDurableError):
        await answer(runtime, stream, pb.EntityBatchResult(failureDetails=failure))

    assert told(caplog) == []
