"""The SDK's worker, with turns that publish what they decide.

The seam for another dispatcher: whoever carries work items out calls `begin_turn` before the turn's code,
`end_turn` after it, and reports the completion only when the outlet has sent what the turn says.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final, TypeVar

import grpc
from durabletask import task
from durabletask.azuremanaged.worker import DurableTaskSchedulerWorker
from durabletask.payload import PayloadStore, externalize_payloads
from pydantic import ValidationError

from towline.contracts import ids
from towline.contracts.durable import DECISION_EVENT, RaisedCommand, RunEnvelope, unwrap_input
from towline.contracts.errors import PayloadStoreAwayError
from towline.contracts.events import ApprovalRefused, Event
from towline.contracts.payload_reference import is_reference
from towline.contracts.tracing import tracing_is_on
from towline.telemetry.runs import scope
from towline.worker import instruments, sdk, workflows
from towline.worker.ask_model import Refused
from towline.worker.errors import TurnAbandonedError
from towline.worker.outcome import RunFacts, outcome_of
from towline.worker.outlet import Outlet
from towline.worker.registry import Hosting, hosted
from towline.worker.run import Run
from towline.worker.turn import Publish, RaiseOn, Turn, active

_log = logging.getLogger(__name__)
T = TypeVar("T")
_TOWLINE_EVENTS: Final = "towline."


class _Recorder:
    """Stands in for the scheduler's stub while a turn's code runs: keeps what the turn answers."""

    def __init__(self, stub: Any) -> None:
        self._stub = stub
        self.response: sdk.OrchestratorResponse | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stub, name)

    def CompleteOrchestratorTask(self, response: sdk.OrchestratorResponse) -> None:  # noqa: N802 — gRPC's name
        self.response = response


class TowlineWorker(DurableTaskSchedulerWorker):
    """Hosts orchestrators as runs.

    Args:
        outlet: Sends what turns say.
        source: CloudEvents source of what is said.
        clock: The time, for outcomes.
        options: As for `DurableTaskSchedulerWorker`.
    """

    def __init__(
        self,
        *,
        outlet: Outlet,
        source: str,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        **options: Any,
    ) -> None:
        super().__init__(**options)
        sdk.install_described_operations()
        self.outlet = outlet
        self.source = source
        self.orchestrators: dict[str, Callable[..., Any]] = {}
        """The user's code by name, before it was wrapped."""
        self.agent_names: dict[str, str] = {}
        """Agents' names by the lower-case ones that entities have."""
        self._clock = clock

    def hosting(self, **changes: Any) -> Hosting:
        """How an orchestrator is hosted by this worker."""
        return Hosting(
            converter=sdk.data_converter(self), source=self.source, agent_names=self.agent_names, **changes
        )

    def add_orchestrator(self, fn: Any) -> str:
        """Register an orchestrator; it is run by the drive loop."""
        if task.get_name(fn).startswith(sdk.WORKFLOW_PREFIX):
            return self.host_orchestrator(fn, self.workflow_hosting())
        return self.host_orchestrator(fn, self.hosting())

    def workflow_hosting(self) -> Hosting:
        """How the orchestrator of a workflow is hosted."""
        return self.hosting(
            make_context=workflows.WorkflowContext,
            take_input=workflows.take_input,
            give_output=workflows.give_output,
        )

    def host_orchestrator(self, fn: Callable[..., Any], hosting: Hosting, *, name: str | None = None) -> str:
        """Register an orchestrator that is hosted in a particular way."""
        registered = name or task.get_name(fn)
        super().add_orchestrator(hosted(registered, fn, hosting))
        self.orchestrators[registered] = fn
        return registered

    def _execute_orchestrator(self, req: sdk.OrchestratorRequest, stub: Any, completionToken: Any) -> None:  # noqa: N803 — the SDK's names
        with scope():
            self._execute_turn(req, stub, completionToken)

    def _execute_turn(self, req: sdk.OrchestratorRequest, stub: Any, token: Any) -> None:
        turn = self.begin_turn(req)
        recorder = _Recorder(stub)
        with active(turn):
            failed = _contained(
                partial(super()._execute_orchestrator, req, recorder, token),
                partial(sdk.failed_turn, req, token),
            )
            recorder.response = failed or recorder.response
        response = recorder.response
        if response is None:
            return  # The SDK has abandoned it: another worker's version.
        with active(turn):
            self.end_turn(turn, req, response)
        try:
            self.outlet.send(turn, lambda said: _raise_event(stub, said, sdk.payload_store(self)))
        except TurnAbandonedError as abandoned:
            _log.info("turn_abandoned", extra={"instance_id": req.instanceId, "reason": str(abandoned)})
            return
        instruments.record(turn, now=self._clock())
        try:
            stub.CompleteOrchestratorTask(response)
        except grpc.RpcError as error:
            # The scheduler hands the turn out again; it says the same.
            _log.warning(
                "turn_not_reported", extra={"instance_id": req.instanceId, "error": _rpc_text(error)}
            )

    def _execute_activity(self, req: Any, stub: Any, completionToken: Any) -> None:  # noqa: N803 — the SDK's names
        execute = partial(super()._execute_activity, req, stub, completionToken)
        _report(stub, _contained(execute, partial(sdk.failed_activity, req, completionToken)))

    def _execute_entity_batch(self, req: Any, stub: Any, completionToken: Any) -> Any:  # noqa: N803 — the SDK's names
        execute = partial(super()._execute_entity_batch, req, stub, completionToken)
        failed = _contained(execute, partial(sdk.failed_batch, req, completionToken))
        _report(stub, failed)
        return None if failed is None else failed.message

    def now(self) -> datetime:
        """The time."""
        return self._clock()

    def begin_turn(self, request: sdk.OrchestratorRequest) -> Turn:
        """The turn that `request` asks for."""
        self.outlet.replace(request.instanceId)
        if tracing_is_on():
            sdk.pin_trace(request)
        return Turn(
            request.instanceId,
            sdk.history_length(request),
            repeats_beginning=sdk.is_second_turn(request)
            and not self.outlet.knows_beginning(request.instanceId),
        )

    def end_turn(
        self, turn: Turn, request: sdk.OrchestratorRequest, response: sdk.OrchestratorResponse
    ) -> None:
        """Add to the outbox what the turn's answer means for the run: at its end, the outcome."""
        action = sdk.completion(response)
        if action is None:
            return
        if turn.run is not None and turn.run.drops_events:
            sdk.keep_events(response, lambda name: name.casefold().startswith(_TOWLINE_EVENTS))
        action = sdk.completion(sdk.resolve_payloads(response, sdk.payload_store(self)))
        envelope = turn.run.envelope if turn.run is not None else _envelope_of(request)
        if action is None or envelope is None:
            return
        outcome = outcome_of(action, self._facts(turn.run, envelope))
        if outcome is None:
            return
        self._close_book(turn, envelope, request)
        if envelope.role != "run":
            return
        turn.outbox.append(
            Publish(
                Event(
                    id=ids.outcome_id(envelope.run_id),
                    source=self.source,
                    data=outcome,
                    traceparent=turn.run.traceparent if turn.run is not None else envelope.traceparent,
                    tracestate=envelope.tracestate,
                )
            )
        )

    def _facts(self, run: Run | None, envelope: RunEnvelope) -> RunFacts:
        now = self._clock()
        started_at = None if run is None else run.counters.started_at
        return RunFacts(
            run_id=envelope.run_id,
            run_type=envelope.run_type,
            started_at=started_at,
            finished_at=now if started_at is None else max(now, started_at),
            usage=None if run is None else run.usage,
            cancel_reason=None if run is None or run.cancel is None else run.cancel.reason,
        )

    def _close_book(self, turn: Turn, envelope: RunEnvelope, request: sdk.OrchestratorRequest) -> None:
        """Answer every decision that has no answer yet: asks that stay open, early ones, the latest ones."""
        run = turn.run
        if run is not None and run.asks is not None:
            run.ended = True
            run.asks.close()
        for data in sdk.raised_events(request, DECISION_EVENT):
            try:
                command = RaisedCommand.model_validate(data)
            except ValidationError:
                _log.warning("decision_unreadable", exc_info=True, extra={"run_id": envelope.run_id})
                continue
            if run is not None and run.asks is not None:
                run.asks.receive(command)
                continue
            refused = Refused(command.name, command.command_id, "run_finished")
            self._refuse(turn, envelope, refused)

    def _refuse(self, turn: Turn, envelope: RunEnvelope, refused: Refused) -> None:
        turn.outbox.append(
            Publish(
                Event(
                    id=ids.approval_refused_id(envelope.run_id, refused.approval_id, refused.command_id),
                    source=self.source,
                    data=ApprovalRefused(
                        run_id=envelope.run_id, approval_id=refused.approval_id, reason=refused.reason
                    ),
                    traceparent=envelope.traceparent,
                )
            )
        )


def _contained(execute: Callable[[], object], failed: Callable[[Exception], T]) -> T | None:
    """`execute`, one of the SDK's executors, which answer themselves; what `failed` answers if it raises.

    Raises:
        PayloadStoreAwayError: So that the item is handed out again.
    """

    def answered() -> None:
        execute()

    def failed_by(error: Exception) -> T:
        if isinstance(error, PayloadStoreAwayError | TimeoutError):
            raise error
        return failed(error)

    return sdk.contained(answered, failed_by)


def _report(stub: Any, failed: sdk.Answer | None) -> None:
    if failed is None:
        return
    try:
        getattr(stub, failed.method)(failed.message)
    except grpc.RpcError as error:
        # The lease runs out, and the item is handed out again.
        _log.warning("item_not_reported", extra={"method": failed.method, "error": _rpc_text(error)})


def _envelope_of(request: sdk.OrchestratorRequest) -> RunEnvelope | None:
    """The envelope of a run whose code never ran (it is not registered, say)."""
    started = sdk.started_event(request)
    if started is None:
        return None
    if is_reference(started.input.value):
        # The payload is gone, and the envelope with it. The bridge starts a run under its type and its id.
        parent = sdk.has_parent(started)
        return None if parent else RunEnvelope(run_id=request.instanceId, run_type=started.name)
    try:
        envelope, _ = unwrap_input(sdk.json_value(started.input.value))
    except ValueError:
        return None
    return envelope


def _raise_event(stub: Any, said: RaiseOn, store: PayloadStore | None) -> None:
    request = sdk.raise_event_request(said.instance_id, said.name, said.data)
    if store is not None:
        externalize_payloads(request, store, instance_id=said.instance_id)
    try:
        stub.RaiseEvent(request)
    except grpc.RpcError as error:
        if error.code() != grpc.StatusCode.NOT_FOUND:  # type: ignore[attr-defined]
            raise TurnAbandonedError(f"{said.instance_id}: {_rpc_text(error)}") from error
        # The other one has ended and was purged: nobody is there to be told.
        _log.info("event_target_gone", extra={"instance_id": said.instance_id, "event_name": said.name})


def _rpc_text(error: grpc.RpcError) -> str:
    code = getattr(error, "code", None)
    return f"{code()}: {error}" if callable(code) else str(error)
