"""The outcome of a run, read from the action by which its last turn ends it. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import durabletask.internal.orchestrator_service_pb2 as pb
from pydantic import JsonValue, ValidationError

from towline.contracts.durable import CANCELLED_ERROR_TYPE
from towline.contracts.events import ErrorInfo, RunCancelled, RunCompleted, RunFailed, RunOutcome, Usage

_TASK_FAILED: Final = "TaskFailedError"
_TERMINATED: Final = "terminated"
_NOT_JSON: Final = "OutputNotJsonError"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts:
    """What an outcome says besides the result itself."""

    run_id: str
    run_type: str
    started_at: datetime | None
    finished_at: datetime
    usage: Usage | None = None
    cancel_reason: str | None = None


def outcome_of(action: pb.CompleteOrchestrationAction, facts: RunFacts) -> RunOutcome | None:
    """The run's outcome; None if it goes on in another generation."""
    status = action.orchestrationStatus
    if status == pb.ORCHESTRATION_STATUS_CONTINUED_AS_NEW:
        return None
    if status == pb.ORCHESTRATION_STATUS_COMPLETED:
        return _completed(json.loads(action.result.value) if action.result.value else None, facts)
    failure = action.failureDetails
    if status == pb.ORCHESTRATION_STATUS_TERMINATED or type_name(failure) == CANCELLED_ERROR_TYPE:
        terminated = status == pb.ORCHESTRATION_STATUS_TERMINATED
        return RunCancelled(
            run_id=facts.run_id,
            run_type=facts.run_type,
            reason=_termination_reason(action.result.value) if terminated else facts.cancel_reason,
            finished_at=facts.finished_at,
        )
    return failed(facts, error_info(failure))


def _completed(output: Any, facts: RunFacts) -> RunCompleted | RunFailed:
    """``run.completed``; ``run.failed`` if the output is what Python writes as JSON and no contract takes."""
    try:
        return RunCompleted(
            run_id=facts.run_id,
            run_type=facts.run_type,
            output=output,
            usage=facts.usage,
            started_at=facts.started_at or facts.finished_at,
            finished_at=facts.finished_at,
        )
    except ValidationError as error:
        problem = error.errors(include_url=False, include_context=False, include_input=False)[0]["msg"]
        message = (
            f"the run returned, but its output can't be published: {problem}; "
            "return JSON without NaN, Infinity and very deep nesting"
        )
        return failed(facts, ErrorInfo(type=_NOT_JSON, message=message))


def failed(facts: RunFacts, error: ErrorInfo) -> RunFailed:
    """``run.failed`` with `error`."""
    return RunFailed(
        run_id=facts.run_id,
        run_type=facts.run_type,
        error=error,
        started_at=facts.started_at,
        finished_at=facts.finished_at,
    )


def error_info(failure: pb.TaskFailureDetails) -> ErrorInfo:
    """What went wrong, in the names of the code that raised it.

    A failed activity or child that nobody caught fails the run; then its own error is the answer, and
    what was wrapped around it is in the details. Stack traces stay in the logs.
    """
    chain = list(_chain(failure))
    told = next((link for link in chain if type_name(link) != _TASK_FAILED), chain[-1])
    others: list[JsonValue] = [
        {"type": type_name(link), "message": link.errorMessage} for link in chain if link is not told
    ]
    return ErrorInfo(
        type=type_name(told),
        message=told.errorMessage or type_name(told),
        details={"chain": others} if others else None,
    )


def type_name(failure: pb.TaskFailureDetails) -> str:
    """The error's class, without its module."""
    return failure.errorType.rpartition(".")[2] or "Error"


def _chain(failure: pb.TaskFailureDetails) -> Iterator[pb.TaskFailureDetails]:
    link = failure
    while True:
        yield link
        if not link.HasField("innerFailure"):
            return
        link = link.innerFailure


def _termination_reason(encoded: str) -> str | None:
    if not encoded:
        return _TERMINATED
    try:
        reason: Any = json.loads(encoded)
    except ValueError:
        return _TERMINATED
    return reason if isinstance(reason, str) and reason else _TERMINATED
