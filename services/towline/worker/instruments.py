"""Metrics and spans of the worker: of what turns have said, of agents' turns, of work in hand.

Told by the adapters once a turn's events are published: a turn that is repeated after a crash may be told of
twice, one that is only replayed never. What each metric means is in `towline.telemetry.metrics`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from agent_framework import AgentResponse, AgentResponseUpdate

from towline.contracts.events import (
    ApprovalRefused,
    ApprovalRequested,
    RunCancelled,
    RunCompleted,
    RunFailed,
    RunStarted,
)
from towline.telemetry import conventions, metrics, spans
from towline.telemetry.metrics import Bounded
from towline.telemetry.runs import RunRef, bind
from towline.worker.run import Run
from towline.worker.turn import Publish, Turn, Waited

if TYPE_CHECKING:
    from towline.worker.dispatcher import Dispatcher
    from towline.worker.outlet import Outlet

_started: Final = metrics.counter("towline.runs.started")
_ended: Final = metrics.counter("towline.runs.ended")
_queue_delay: Final = metrics.histogram("towline.run.queue_delay")
_duration: Final = metrics.histogram("towline.run.duration")
_requested: Final = metrics.counter("towline.approvals.requested")
_resolved: Final = metrics.counter("towline.approvals.resolved")
_refused: Final = metrics.counter("towline.approvals.refused")
_wait: Final = metrics.histogram("towline.approval.wait")
_retries: Final = metrics.counter("towline.agent.retries")
_turn_duration: Final = metrics.histogram("towline.agent.turn.duration")
_first_token: Final = metrics.histogram("towline.agent.time_to_first_token")
_tool_calls: Final = metrics.counter("towline.agent.tool_calls")
# Models invent names of tools.
_tool_label: Final = Bounded()

_Ended: TypeAlias = RunCompleted | RunFailed | RunCancelled
_OUTCOMES: Final[Mapping[type[Any], str]] = {
    RunCompleted: "completed",
    RunFailed: "failed",
    RunCancelled: "cancelled",
}


def record(turn: Turn, *, now: datetime) -> None:
    """Tell of what `turn` has said, now that it is said."""
    run_type = "unknown" if turn.run is None else turn.run.envelope.run_type
    for said in turn.outbox:
        if isinstance(said, Publish) and not _is_repeated(said, turn):
            _published(said.event.data, run_type, turn.run, now)
    for waited in turn.waited:
        labels = {"run_type": run_type, "outcome": waited.outcome}
        _resolved.add(1, labels)
        _wait.record(max((waited.resolved_at - waited.requested_at).total_seconds(), 0.0), labels)
        _tell_of_wait(waited, turn.run)
    if turn.retries:
        _retries.add(turn.retries, {"run_type": run_type})


def _is_repeated(said: Publish, turn: Turn) -> bool:
    return turn.repeats_beginning and isinstance(said.event.data, RunStarted)


def _published(data: Any, run_type: str, run: Run | None, now: datetime) -> None:
    if isinstance(data, RunStarted):
        _started.add(1, {"run_type": run_type})
        envelope = None if run is None else run.envelope
        due = None if envelope is None else envelope.start_at or envelope.requested_at
        if due is not None:
            _queue_delay.record(max((now - due).total_seconds(), 0.0), {"run_type": run_type})
    elif isinstance(data, RunCompleted | RunFailed | RunCancelled):
        _run_ended(data, run_type)
    elif isinstance(data, ApprovalRequested):
        _requested.add(1, {"run_type": run_type})
    elif isinstance(data, ApprovalRefused):
        _refused.add(1, {"reason": data.reason})


def _run_ended(data: _Ended, run_type: str) -> None:
    # An instance whose code never ran has no run; its outcome names the type all the same.
    labels = {"run_type": data.run_type or run_type, "outcome": _OUTCOMES[type(data)]}
    _ended.add(1, labels)
    started_at = getattr(data, "started_at", None)
    if isinstance(started_at, datetime):
        _duration.record(max((data.finished_at - started_at).total_seconds(), 0.0), labels)


def _tell_of_wait(waited: Waited, run: Run | None) -> None:
    parent = spans.context_named(waited.traceparent)
    if parent is None or run is None:
        return
    envelope = run.envelope
    attributes = RunRef(envelope.run_id, envelope.run_type, envelope.session_id).attributes()
    attributes |= {conventions.APPROVAL_ID: waited.approval_id, conventions.OUTCOME: waited.outcome}
    if waited.approver is not None:
        attributes[conventions.APPROVER] = waited.approver
    decisions = (spans.context_named(traceparent) for traceparent in waited.decided_in)
    spans.tell(
        f"approval {waited.approval_id.partition('~')[0]}",
        parent=parent,
        span_id=spans.span_id_of(envelope.run_id, "approval", waited.approval_id),
        start=waited.requested_at,
        end=waited.resolved_at,
        attributes=attributes,
        links=[decision for decision in decisions if decision is not None],
    )


def bind_activity(request: Any) -> None:
    """Put the run on what this task does, from the tags that the run's context gave the activity."""
    tags: Mapping[str, str] = request.tags
    run_id = tags.get(conventions.RUN_ID)
    if run_id is not None:
        bind(RunRef(run_id, tags.get(conventions.RUN_TYPE), tags.get(conventions.SESSION_ID)))


class TurnMetrics:
    """Watches every agent turn."""

    def on_start(self, run_id: str, turn: str, agent: str) -> _TurnMeter:
        """See `towline.worker.agents.TurnObserver`."""
        del run_id, turn
        return _TurnMeter(agent)


class _TurnMeter:
    def __init__(self, agent: str) -> None:
        self._agent = agent
        self._began = time.perf_counter()
        self._spoke = False

    def on_update(self, update: AgentResponseUpdate) -> None:
        if not self._spoke and update.text:
            self._spoke = True
            _first_token.record(time.perf_counter() - self._began, {"agent": self._agent})

    def on_finish(self, response: AgentResponse) -> None:
        self._end("ok")
        for message in response.messages:
            for content in message.contents:
                if content.type == "function_call" and content.name:
                    _tool_calls.add(1, {"agent": self._agent, "tool": _tool_label(content.name)})

    def on_error(self, error: BaseException) -> None:
        self._end("cancelled" if isinstance(error, asyncio.CancelledError) else "error")

    def _end(self, outcome: str) -> None:
        elapsed_s = time.perf_counter() - self._began
        _turn_duration.record(elapsed_s, {"agent": self._agent, "outcome": outcome})


def observe_host(dispatcher: Dispatcher, outlet: Outlet) -> None:
    """Report on the work in hand. Once per process."""
    metrics.observe(
        "towline.worker.work_items", lambda: [(n, {"kind": k}) for k, n in list(dispatcher.taken.items())]
    )
    metrics.observe(
        "towline.worker.turns", lambda: [(n, {"how": how}) for how, n in list(dispatcher.turns.items())]
    )
    metrics.observe_value("towline.worker.in_hand", lambda: dispatcher.in_hand)
    metrics.observe_value("towline.worker.turns_waiting", lambda: outlet.waiting_count)
