"""Answers for items that cannot be carried out, and the size of what is in a message."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Final, TypeVar

import durabletask.internal.orchestrator_service_pb2 as pb
from durabletask import worker as sdk_worker
from durabletask.internal import helpers
from durabletask.worker import _EntityExecutor  # pyright: ignore[reportPrivateUsage]
from google.protobuf import wrappers_pb2
from greenlet import GreenletExit

from towline.worker.errors import WorkerError
from towline.worker.sdk.execution import Answer

_log = logging.getLogger(__name__)
_CAUSES_MAX: Final = 10
A = TypeVar("A")
B = TypeVar("B")


def contained(execute: Callable[[], A], failed: Callable[[Exception], B]) -> A | B:
    """What `execute` answers; if it raises instead, what `failed` makes of that.

    The SDK's executors answer for what the user's code raises, with two exceptions: errors that they can't
    describe (`__str__` raises, or gives half a surrogate pair), and what is no `Exception`, of which
    SystemExit would end the process, and asyncio's CancelledError pass for a cancel of the work item.
    """
    try:
        return execute()
    except (GreenletExit, GeneratorExit):  # nobody waits for the answer any more
        raise
    except BaseException as error:  # noqa: BLE001 — see above
        _log.exception("item_raised")
        return failed(_as_exception(error))


def _as_exception(error: BaseException) -> Exception:
    """What the user's code raised, as something that an item can be failed with."""
    if isinstance(error, Exception):
        return error
    return WorkerError(f"the code raised {type(error).__name__}: {message_of(error)}")


class _DescribingExecutor(_EntityExecutor):
    """Carries operations of entities out; what one of them raises is always something that can be described.

    The SDK raises an error that it can't describe out of the whole batch: the operations of others, which may
    be done, would fail with it.
    """

    def execute(self, *arguments: Any, **options: Any) -> str | None:
        """One operation."""
        try:
            return super().execute(*arguments, **options)
        except (GreenletExit, GeneratorExit):  # nobody waits for the answer any more
            raise
        except BaseException as error:  # noqa: BLE001 — see `contained`
            failure = _described(_as_exception(error))
        # Not where it was caught: an error is described together with the one that it was raised in.
        raise failure


def _described(error: Exception) -> Exception:
    """`error`, or what can be said of it."""
    try:
        helpers.new_failure_details(error)
    except Exception:  # noqa: BLE001 — the user's `__str__`
        return WorkerError(f"{type(error).__name__}: {message_of(error)}")
    return error


def install_described_operations() -> None:
    """Have each operation of an entity fail for itself. Idempotent."""
    setattr(sdk_worker, "_EntityExecutor", _DescribingExecutor)  # noqa: B010 — no public name


def failed_turn(request: Any, token: str, error: Exception) -> pb.OrchestratorResponse:
    """The answer that fails the instance."""
    complete = pb.CompleteOrchestrationAction(
        orchestrationStatus=pb.ORCHESTRATION_STATUS_FAILED, failureDetails=failure_of(error)
    )
    return pb.OrchestratorResponse(
        instanceId=request.instanceId,
        actions=[pb.OrchestratorAction(id=-1, completeOrchestration=complete)],
        completionToken=token,
        orchestrationTraceContext=request.orchestrationTraceContext,
    )


def failed_activity(request: Any, token: str, error: Exception) -> Answer:
    """The answer that fails the activity."""
    message = pb.ActivityResponse(
        instanceId=request.orchestrationInstance.instanceId,
        taskId=request.taskId,
        failureDetails=failure_of(error),
        completionToken=token,
    )
    return Answer("CompleteActivityTask", message)


def failed_batch(request: Any, token: str, error: Exception) -> Answer:
    """The answer that fails each operation of an entity's batch and leaves its state as it is."""
    infos: list[pb.OperationInfo] = []
    if isinstance(request, pb.EntityRequest):
        request, infos = helpers.convert_to_entity_batch_request(request)
    failed = pb.OperationResult(failure=pb.OperationResultFailure(failureDetails=failure_of(error)))
    message = pb.EntityBatchResult(
        results=[failed] * len(request.operations), completionToken=token, operationInfos=infos
    )
    if request.HasField("entityState"):
        message.entityState.CopyFrom(request.entityState)
    return Answer("CompleteEntityTask", message)


def failure_of(error: BaseException, causes: int = _CAUSES_MAX) -> pb.TaskFailureDetails:
    """What is reported of `error`, whatever its message is made of."""
    cause = error.__cause__ or error.__context__
    inner = failure_of(cause, causes - 1) if isinstance(cause, Exception) and causes > 0 else None
    return pb.TaskFailureDetails(
        errorType=type(error).__name__, errorMessage=message_of(error), innerFailure=inner
    )


def message_of(error: BaseException) -> str:
    """The error's message, which may be none that can be written."""
    try:
        return str(error).encode("utf-8", "replace").decode()
    except Exception as broken:  # noqa: BLE001 — the user's `__str__`
        return f"(no message: its __str__ raised {type(broken).__name__})"


def largest_text_bytes(message: Any) -> int:
    """Size of the largest text in a message that may be put aside, in bytes of UTF-8."""
    if isinstance(message, wrappers_pb2.StringValue):
        return len(message.value.encode())
    largest = 0
    for descriptor, value in message.ListFields():
        if descriptor.message_type is None:
            continue
        parts = value if descriptor.is_repeated else (value,)
        if descriptor.message_type.GetOptions().map_entry:
            parts = [part for part in value.values() if hasattr(part, "ListFields")]
        largest = max([largest, *(largest_text_bytes(part) for part in parts)])
    return largest
