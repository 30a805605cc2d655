"""Orchestration turns by the SDK's executor, which may go on where the instance's last turn left it.

The SDK's worker makes a new executor for each turn and runs the whole history through it. The same executor
can be kept: what the history has gained since (the confirmations of the last turn's actions, then the new
events) goes through the same `process_event` that replay uses, so that the SDK's own checks of determinism
apply to it. `Orchestration.extended_by` says whether a request is such a continuation.

What `carry_out` does around the executor is what `TaskHubGrpcWorker._execute_orchestrator` of the pinned
version does; the tests compare the two, turn by turn.
"""
# The SDK's executor and context have no public parts.
# pyright: reportPrivateUsage=false
# ruff: noqa: SLF001

from __future__ import annotations

import contextvars
import logging
import time
from dataclasses import dataclass
from typing import Any, Final

import durabletask.internal.exceptions as sdk_errors
import durabletask.internal.helpers as ph
import durabletask.internal.orchestrator_service_pb2 as pb
from durabletask.internal import tracing
from durabletask.worker import VersionFailureStrategy, _OrchestrationExecutor, _RuntimeOrchestrationContext

from towline.worker.errors import WorkerError
from towline.worker.sdk.execution import Answer, Worker
from towline.worker.sdk.failures import failure_of
from towline.worker.sdk.messages import history_length, started_event
from towline.worker.sdk.releases import release_context

_log = logging.getLogger(__name__)

_REPORT: Final = "CompleteOrchestratorTask"
_ABANDON: Final = "AbandonTaskOrchestratorWorkItem"
_CONFIRMATIONS: Final = frozenset(
    {
        "taskScheduled",
        "timerCreated",
        "subOrchestrationInstanceCreated",
        "eventSent",
        "entityOperationCalled",
        "entityOperationSignaled",
        "entityLockRequested",
        "entityUnlockSent",
    }
)
"""Events by which the history confirms the actions of a turn."""


@dataclass(frozen=True, slots=True)
class _Mark:
    """Where in the history an orchestration stands after a turn of its own."""

    execution_id: str
    start: int
    """Index of the turn's first event."""
    started: pb.HistoryEvent
    """That event: its time tells this turn from any other of the instance."""
    length: int
    """Events that have been processed, those of the turn included."""
    last: pb.HistoryEvent
    actions: int
    """Actions of the turn that the history is going to confirm."""


class Orchestration:
    """One execution of an orchestration: the SDK's executor, its context and the code's generator.

    Args:
        name: The orchestrator's.
        executor: The SDK's executor.
        context: The SDK's context.
    """

    def __init__(
        self, name: str, executor: _OrchestrationExecutor, context: _RuntimeOrchestrationContext
    ) -> None:
        self.name = name
        self.executor = executor
        self.context = context
        self.host_state: Any = None
        """What the host keeps along with it."""
        self.variables: contextvars.Context | None = None
        """Context variables of the code, that all of its turns have to be run with."""
        self.turn_count = 0
        """Turns that have been carried out with it."""
        self.history_bytes = 0
        """What its history takes, about; counted by who keeps it."""
        self._mark: _Mark | None = None
        self._closed = False

    @property
    def is_complete(self) -> bool:
        """Whether the code has come to its end, or to that of its generation."""
        return self.context._is_complete

    def close(self) -> None:
        """End the code where it waits. It is then of no more use."""
        if self._closed:
            return
        self._closed = True
        generator = self.context._generator
        try:
            if generator is None:
                pass
            elif self.variables is None:
                generator.close()
            else:
                self.variables.run(generator.close)
        except BaseException:  # noqa: BLE001 — code that does not let itself be closed; nobody waits for it
            _log.debug("orchestration_close_failed", exc_info=True)
        release_context(self.context)

    def extended_by(self, request: pb.OrchestratorRequest) -> bool:
        """Whether the history of `request` is the known one, the confirmations of the last turn, and news.

        Of a history that is not all there the events from the last turn on have to be.

        It isn't when another worker took a turn meanwhile, when the last turn was not accepted, after
        continue-as-new, restart and rewind, or with a scheduler that orders confirmations otherwise.
        """
        mark, past = self._mark, request.pastEvents
        if mark is None or self._closed or request.executionId.value != mark.execution_id:
            return False
        end, missing = len(past) - 1, _missing(request)
        if (
            mark.start < missing
            or end + missing != mark.length + mark.actions
            or past[mark.start - missing] != mark.started
            or past[mark.length - 1 - missing] != mark.last
            or past[end].WhichOneof("eventType") != "orchestratorCompleted"
        ):
            return False
        confirmed = range(mark.length - missing, end)
        if any(past[at].WhichOneof("eventType") not in _CONFIRMATIONS for at in confirmed):
            return False
        return not any(
            event.WhichOneof("eventType") in ("executionStarted", "executionRewound")
            for event in request.newEvents
        )

    def go_on(self, request: pb.OrchestratorRequest) -> None:
        """Process what the history has gained. Only if `extended_by` it."""
        assert self._mark is not None
        past, begin = request.pastEvents, self._mark.length - _missing(request)
        self._process([past[at] for at in range(begin, len(past))], request.newEvents)

    def replay(self, request: pb.OrchestratorRequest) -> None:
        """Process the whole history."""
        self._process(request.pastEvents, request.newEvents)

    def _process(self, past: Any, new: Any) -> None:
        executor, context = self.executor, self.context
        try:
            context._is_replaying = True
            for event in past:
                executor.process_event(context, event)
            context._is_replaying = False
            for event in new:
                executor.process_event(context, event)
        except sdk_errors.VersionFailureException as error:
            versioning = executor._registry.versioning
            strategy = None if versioning is None else versioning.failure_strategy
            if strategy == VersionFailureStrategy.FAIL:
                context.set_failed(error.error_details or error)
            elif strategy == VersionFailureStrategy.REJECT:
                raise sdk_errors.AbandonOrchestrationError from error
        except BaseException as raised:  # noqa: BLE001 — what the code raises fails the orchestration
            # SystemExit of code that is no generator, say. Nothing is awaited here, so no CancelledError is
            # a cancel of the host's task.
            error = raised if isinstance(raised, Exception) else _as_exception(raised)
            # The SDK calls an output's end complete before it has written the output: what breaks there
            # (RecursionError, whatever a `to_json` raises) would leave it without an end.
            context._is_complete = context._is_complete and _has_end(context)
            context.set_failed(error)

    def mark(self, request: pb.OrchestratorRequest, actions: int) -> None:
        """Note how far the history has been processed."""
        start = history_length(request)
        self.turn_count += 1
        self._mark = _Mark(
            execution_id=request.executionId.value,
            start=start,
            started=_copy(request.newEvents[0]),
            length=start + len(request.newEvents),
            last=_copy(request.newEvents[-1]),
            actions=actions,
        )


@dataclass(slots=True)
class Carried:
    """What came of a turn."""

    answer: Answer
    orchestration: Orchestration | None
    """As the turn left it; None if no code was run."""
    goes_on: bool = False
    """Whether it waits for more, so that a later turn can go on with it."""
    turn_count: int = 0
    """How many turns it had then: a later turn may have gone on with it meanwhile."""


def carry_out(
    worker: Worker, request: pb.OrchestratorRequest, token: str, kept: Orchestration | None = None
) -> Carried:
    """One orchestration turn.

    Args:
        worker: Whose orchestrators are run.
        request: The turn. Large payloads are the caller's to fetch before and to put aside afterwards.
        token: Completion token of the work item.
        kept: The orchestration as its last turn left it, if the request extends that.

    Returns:
        The answer for the scheduler, and the orchestration: to be kept if it goes on, else to be closed.
    """
    started = started_event(request)
    parent = _parent_of(started)
    told = request.orchestrationTraceContext
    began_ns = told.spanStartTime.ToNanoseconds() if told.HasField("spanStartTime") else time.time_ns()
    orchestration, goes_on = kept, False
    emits = worker._emit_trace_spans
    try:
        orchestration, actions, status, trace = _run(worker, request, kept, started)
        response = pb.OrchestratorResponse(
            instanceId=request.instanceId,
            actions=actions,
            customStatus=ph.get_string_value(status),
            completionToken=token,
            orchestrationTraceContext=(
                tracing.build_orchestration_trace_context(began_ns, span_id=trace.spanID if trace else None)
                if emits
                else None
            )
            or told,
        )
        if emits:
            _tell_of_end(request, started, began_ns, actions, parent, trace)
        goes_on = orchestration is not None and not orchestration.is_complete
    except sdk_errors.AbandonOrchestrationError:
        return Carried(abandoned_turn(token), orchestration)
    except Exception as error:  # noqa: BLE001 — the run is failed with it
        # Trouble of the executor itself: the code's own errors are results.
        _log.exception("turn_failed", extra={"instance_id": request.instanceId})
        # Not by the SDK's own description: an error that it can't describe is one of those that come here.
        failure = failure_of(error)
        if emits:
            tracing.emit_orchestration_span(
                started.name if started is not None else "<unknown>",
                request.instanceId,
                began_ns,
                is_failed=True,
                failure_details=failure,
                parent_trace_context=parent,
            )
        failed = ph.new_complete_orchestration_action(-1, pb.ORCHESTRATION_STATUS_FAILED, "", failure)
        response = pb.OrchestratorResponse(
            instanceId=request.instanceId, actions=[failed], completionToken=token
        )
    turn_count = 0 if orchestration is None else orchestration.turn_count
    return Carried(turn_answer(response), orchestration, goes_on, turn_count)


def _as_exception(stop: BaseException) -> WorkerError:
    error = WorkerError(f"the orchestration raised {type(stop).__name__}")
    error.__cause__ = stop
    return error


def _has_end(context: _RuntimeOrchestrationContext) -> bool:
    """Whether what has ended the code is among its actions, or comes to be by them."""
    if context._completion_status == pb.ORCHESTRATION_STATUS_CONTINUED_AS_NEW:
        return True
    return any(action.HasField("completeOrchestration") for action in context._pending_actions.values())


def turn_answer(response: pb.OrchestratorResponse) -> Answer:
    """How a turn is reported."""
    return Answer(_REPORT, response)


def abandoned_turn(token: str) -> Answer:
    """How a turn is given back: it goes out again."""
    return Answer(_ABANDON, pb.AbandonOrchestrationTaskRequest(completionToken=token))


def _run(
    worker: Worker,
    request: pb.OrchestratorRequest,
    kept: Orchestration | None,
    started: pb.ExecutionStartedEvent | None,
) -> tuple[Orchestration | None, list[pb.OrchestratorAction], str | None, pb.TraceContext | None]:
    """Orchestration, actions, custom status and trace context after the turn's events."""
    if not request.newEvents or _is_rewind(request):
        # Answered by the executor without any code being run.
        result = _executor(worker, request).execute(request.instanceId, request.pastEvents, request.newEvents)
        return None, result.actions, result.encoded_custom_status, result._orchestration_trace_context
    orchestration = kept or _new(worker, request, started)
    known = started is not None and len(request.pastEvents) > 0
    orchestration.executor._orchestration_name = orchestration.name if known else "<unknown>"
    process = orchestration.replay if kept is None else orchestration.go_on
    if worker._emit_trace_spans:
        process(request)
    else:
        with tracing.suppress_span_emission(), tracing.use_trace_context(_parent_of(started)):
            process(request)
    context = orchestration.context
    actions = context.get_actions()
    orchestration.mark(request, len(actions))
    return orchestration, actions, context._encoded_custom_status, context._orchestration_trace_context


def _executor(worker: Worker, request: pb.OrchestratorRequest) -> _OrchestrationExecutor:
    return _OrchestrationExecutor(
        worker._registry,
        worker._logger,
        persisted_orch_span_id=request.orchestrationTraceContext.spanID.value or None,
        maximum_timer_interval=worker.maximum_timer_interval,
        data_converter=worker._data_converter,
        exception_properties_provider=worker._exception_properties_provider,
    )


def _new(
    worker: Worker, request: pb.OrchestratorRequest, started: pb.ExecutionStartedEvent | None
) -> Orchestration:
    context = _RuntimeOrchestrationContext(
        request.instanceId,
        worker._registry,
        maximum_timer_interval=worker.maximum_timer_interval,
        data_converter=worker._data_converter,
        exception_properties_provider=worker._exception_properties_provider,
        logger=worker._logger,
    )
    name = "" if started is None else started.name
    return Orchestration(name, _executor(worker, request), context)


def _is_rewind(request: pb.OrchestratorRequest) -> bool:
    return any(event.HasField("executionRewound") for event in request.newEvents) and any(
        event.HasField("executionCompleted") for event in request.pastEvents
    )


def _tell_of_end(
    request: pb.OrchestratorRequest,
    started: pb.ExecutionStartedEvent | None,
    began_ns: int,
    actions: list[pb.OrchestratorAction],
    parent: pb.TraceContext | None,
    trace: pb.TraceContext | None,
) -> None:
    """The orchestration's span, when it is over."""
    ends = [action.completeOrchestration for action in actions if action.HasField("completeOrchestration")]
    if not ends:
        return
    failures = [end for end in ends if end.orchestrationStatus == pb.ORCHESTRATION_STATUS_FAILED]
    tracing.emit_orchestration_span(
        started.name if started is not None else "<unknown>",
        request.instanceId,
        began_ns,
        bool(failures),
        failure_details=failures[-1].failureDetails if failures else None,
        parent_trace_context=parent,
        orchestration_trace_context=trace,
    )


def _parent_of(started: pb.ExecutionStartedEvent | None) -> pb.TraceContext | None:
    if started is None or not started.HasField("parentTraceContext"):
        return None
    return started.parentTraceContext


def _missing(request: pb.OrchestratorRequest) -> int:
    """Events that the history has and the request has not: those between its first and its last turn."""
    return history_length(request) - len(request.pastEvents)


def _copy(event: pb.HistoryEvent) -> pb.HistoryEvent:
    # A part of the request would keep all of it in memory.
    copy = pb.HistoryEvent()
    copy.CopyFrom(event)
    return copy
