"""Reading what a turn was given and what it answers."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

import durabletask.internal.orchestrator_service_pb2 as pb
from durabletask.payload import helpers as payload_helpers
from durabletask.payload.store import PayloadStore
from google.protobuf import wrappers_pb2

from towline.telemetry.spans import span_id_of

_log = logging.getLogger(__name__)

_HISTORY_LENGTH: Final = "towline.history.length"
"""Property by which our scheduler says how long a history is that is not all in the request."""

OrchestratorRequest = pb.OrchestratorRequest
OrchestratorResponse = pb.OrchestratorResponse


def started_event(request: pb.OrchestratorRequest) -> pb.ExecutionStartedEvent | None:
    """The event that started the instance, if the request carries it."""
    for events in (request.pastEvents, request.newEvents):
        for event in events:
            if event.HasField("executionStarted"):
                return event.executionStarted
    return None


def history_length(request: pb.OrchestratorRequest) -> int:
    """How many events the history has, whether or not all of them are in the request."""
    if request.requiresHistoryStreaming and _HISTORY_LENGTH in request.properties:
        return int(request.properties[_HISTORY_LENGTH].number_value)
    return len(request.pastEvents)


def complete_history(request: pb.OrchestratorRequest, events: Iterable[pb.HistoryEvent]) -> None:
    """Put all `events` of the history into a request that had only some."""
    request.ClearField("pastEvents")
    request.pastEvents.extend(events)
    request.requiresHistoryStreaming = False


def pin_trace(request: pb.OrchestratorRequest) -> None:
    """Give the orchestration's span an id that follows from the instance, before its first turn runs.

    The SDK draws one at random and has the scheduler keep it with the first turn's report. Were that turn
    lost with its worker, what it has published already would name a span that never comes to be.
    """
    started = started_event(request)
    if started is None or not started.HasField("parentTraceContext"):
        return
    if not request.orchestrationTraceContext.spanID.value:
        execution_id = started.orchestrationInstance.executionId.value
        span_id = span_id_of(request.instanceId, execution_id)
        request.orchestrationTraceContext.spanID.value = f"{span_id:016x}"


def has_parent(started: pb.ExecutionStartedEvent) -> bool:
    """Whether the instance was started by another orchestration."""
    return started.HasField("parentInstance")


def raised_events(request: pb.OrchestratorRequest, name: str) -> Iterator[Any]:
    """Data of the external events called `name` that are new in this turn, of those that can be read."""
    for event in request.newEvents:
        if event.HasField("eventRaised") and event.eventRaised.name.casefold() == name.casefold():
            try:
                data = json_value(event.eventRaised.input.value)
            except (ValueError, RecursionError):
                # Data that is in a payload store no more, or what somebody else has raised at the scheduler.
                _log.warning(
                    "event_unreadable", extra={"instance_id": request.instanceId, "event_name": name}
                )
                continue
            yield data


def json_value(text: str | None) -> Any:
    """`text` as JSON; None for no text."""
    return json.loads(text) if text else None


def completion(response: pb.OrchestratorResponse) -> pb.CompleteOrchestrationAction | None:
    """The action by which a turn ends its instance or starts its next generation."""
    for action in response.actions:
        if action.HasField("completeOrchestration"):
            return action.completeOrchestration
    return None


def is_followed(answer: Any) -> bool:
    """Whether another turn is sure to follow the one that is answered so: it has called somebody."""
    if not isinstance(answer, pb.OrchestratorResponse) or completion(answer) is not None:
        return False
    return any(
        action.HasField("scheduleTask")
        or (
            action.HasField("sendEntityMessage")
            and action.sendEntityMessage.HasField("entityOperationCalled")
        )
        for action in answer.actions
    )


def is_second_turn(request: pb.OrchestratorRequest) -> bool:
    """Whether its instance has had one turn before."""
    turns = 0
    for event in request.pastEvents:
        turns += event.HasField("orchestratorStarted")
        if turns > 1:
            return False
    return turns == 1


def resolve_payloads(
    response: pb.OrchestratorResponse, store: PayloadStore | None
) -> pb.OrchestratorResponse:
    """`response` with large payloads fetched back from the store (a copy, if there are any)."""
    if store is None:
        return response
    copy = pb.OrchestratorResponse()
    copy.CopyFrom(response)
    payload_helpers.deexternalize_payloads(copy, store)
    return copy


def keep_events(response: pb.OrchestratorResponse, wanted: Callable[[str], bool]) -> None:
    """Carry over to the next generation only the events whose names are `wanted`."""
    action = completion(response)
    if action is None:
        return
    kept = [event for event in action.carryoverEvents if wanted(event.eventRaised.name)]
    del action.carryoverEvents[:]
    action.carryoverEvents.extend(kept)


def raise_event_request(instance_id: str, name: str, data: Any) -> pb.RaiseEventRequest:
    """A request to raise an external event on another instance."""
    return pb.RaiseEventRequest(
        instanceId=instance_id, name=name, input=wrappers_pb2.StringValue(value=json.dumps(data))
    )
