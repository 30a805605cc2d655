"""A scheduler on paper: recorded history in, the turn's actions out, through the SDK's own executor.

Every turn is carried out three times: twice by the SDK's worker from the whole history, and once by going on
where the turn before left the code. All must say and do the same. So every test that uses it is a test of
replay, and of the orchestrations that are kept between turns, as well.
"""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import durabletask.internal.helpers as ph
import durabletask.internal.orchestrator_service_pb2 as pb
from google.protobuf import json_format, wrappers_pb2

from towline.contracts.durable import (
    CANCEL_EVENT,
    CHILD_ASK_EVENT,
    DECISION_EVENT,
    CancelCommand,
    ChildAsk,
    RaisedCommand,
    RunEnvelope,
    wrap_input,
)
from towline.contracts.events import Event
from towline.worker.dispatcher import Keeper, KeeperOptions
from towline.worker.turn import Publish, RaiseOn, Said, Turn
from towline.worker.worker import TowlineWorker

START = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)


class PaperOutlet:
    """Keeps what turns say."""

    def __init__(self) -> None:
        self.sent: list[Said] = []

    def send(self, turn: Turn, raise_event: Callable[[RaiseOn], None]) -> None:
        self.sent.extend(turn.outbox)

    async def deliver(self, turn: Turn, raise_event: Callable[[RaiseOn], Awaitable[None]]) -> None:
        self.sent.extend(turn.outbox)

    def put_off(self, turn: Turn) -> bool:
        return False

    def replace(self, instance_id: str) -> None: ...

    def knows_beginning(self, instance_id: str) -> bool:
        return True

    def close(self) -> None: ...


class PaperStub:
    def __init__(self) -> None:
        self.response: pb.OrchestratorResponse | None = None

    def CompleteOrchestratorTask(self, response: pb.OrchestratorResponse) -> None:  # noqa: N802
        self.response = response


def make_worker(outlet: Any = None) -> TowlineWorker:
    return TowlineWorker(
        outlet=outlet or PaperOutlet(),
        source="towline/worker/test",
        clock=lambda: START + timedelta(hours=1),
        host_address="127.0.0.1:1",
        taskhub="default",
        token_credential=None,
        secure_channel=False,
    )


def ends_only(request: pb.OrchestratorRequest) -> pb.OrchestratorRequest:
    """`request` as our scheduler sends it to who keeps orchestrations: of a history of more than two turns
    the first one and the last."""
    past = list(request.pastEvents)
    begun = [at for at, event in enumerate(past) if event.HasField("orchestratorStarted")]
    if len(begun) < 3:
        return request
    ends = pb.OrchestratorRequest()
    ends.CopyFrom(request)
    ends.ClearField("pastEvents")
    ends.pastEvents.extend([*past[: begun[1]], *past[begun[-1] :]])
    ends.requiresHistoryStreaming = True
    ends.properties["towline.history.length"].number_value = len(past)
    return ends


@dataclass
class Simulator:
    """One orchestration instance and its history."""

    worker: TowlineWorker
    name: str
    run_input: Any = None
    instance_id: str = "run-1"
    envelope: RunEnvelope | None = None
    parent: str | None = None
    now: datetime = START
    history: list[pb.HistoryEvent] = field(default_factory=list)
    said: list[Said] = field(default_factory=list)
    """All that was said, in order."""
    actions: list[pb.OrchestratorAction] = field(default_factory=list)
    """Actions of the last turn."""
    status: str = "running"
    result: Any = None
    failure: pb.TaskFailureDetails | None = None
    carryover: list[pb.HistoryEvent] = field(default_factory=list)
    custom_status: Any = None
    record: list[dict[str, Any]] = field(default_factory=list)
    """Every turn, to be stored."""

    def __post_init__(self) -> None:
        self.keeper = Keeper(self.worker, KeeperOptions(replay="never"))

    @classmethod
    def of(cls, *orchestrators: Callable[..., Any], **options: Any) -> Simulator:
        worker = options.pop("worker", None) or make_worker()
        for orchestrator in orchestrators:
            worker.add_orchestrator(orchestrator)
        native = options.pop("native", False)
        name = options.pop("name", None) or orchestrators[0].__name__
        made = cls(worker, name, **options)
        if made.envelope is None and not native:
            made.envelope = RunEnvelope(run_id=made.instance_id, run_type=name)
        return made

    # Turns.

    def start(self, *more: pb.HistoryEvent) -> list[Said]:
        value = self.run_input if self.envelope is None else wrap_input(self.envelope, self.run_input)
        started = ph.new_execution_started_event(self.name, self.instance_id, json.dumps(value))
        if self.parent is not None:
            started.executionStarted.parentInstance.orchestrationInstance.instanceId = self.parent
        return self.turn(started, *more)

    def turn(self, *events: pb.HistoryEvent) -> list[Said]:
        """One turn with these new events; what it said."""
        assert self.status == "running", f"the instance is {self.status}"
        new = [ph.new_orchestrator_started_event(self.now), *events]
        first_said, first = self._execute(new)
        said, response = self._execute(new)
        assert said == first_said, "a repeated turn says something else"
        assert _acts(response) == _acts(first), "a repeated turn does something else"
        self._go_on(new, said, response)
        self.record.append(
            {
                "request": json_format.MessageToDict(
                    pb.OrchestratorRequest(
                        instanceId=self.instance_id, pastEvents=self.history, newEvents=new
                    )
                ),
                "said": told(said),
                "actions": [
                    [action.id, action.WhichOneof("orchestratorActionType")] for action in response.actions
                ],
            }
        )
        self.history += new
        self.actions = list(response.actions)
        self.custom_status = json.loads(response.customStatus.value) if response.customStatus.value else None
        for action in response.actions:
            self._apply(action)
        self.history.append(ph.new_orchestrator_completed_event())
        self.said += said
        return said

    def _execute(self, new: list[pb.HistoryEvent]) -> tuple[list[Said], pb.OrchestratorResponse]:
        stub = PaperStub()
        outlet = self.worker.outlet
        assert isinstance(outlet, PaperOutlet)
        outlet.sent.clear()
        request = pb.OrchestratorRequest(instanceId=self.instance_id, pastEvents=self.history, newEvents=new)
        self.worker._execute_orchestrator(request, stub, "token")
        assert stub.response is not None
        return list(outlet.sent), stub.response

    def _go_on(self, new: list[pb.HistoryEvent], said: list[Said], response: pb.OrchestratorResponse) -> None:
        request = ends_only(
            pb.OrchestratorRequest(instanceId=self.instance_id, pastEvents=self.history, newEvents=new)
        )
        if request.requiresHistoryStreaming:
            assert self.keeper.goes_on(request)
        turn = self.worker.begin_turn(request)
        assert turn.position == len(self.history)
        expected = "kept" if len(self.keeper) else "replayed"
        before = self.keeper.turns[expected]
        carried = self.keeper.carry_out(turn, request, "token")
        assert self.keeper.turns[expected] == before + 1, f"a turn was not {expected}: {self.keeper.turns}"
        self.keeper.keep(request, carried, now=0.0)
        answer = carried.answer.message
        assert turn.outbox == said, "a turn that goes on says something else"
        assert _acts(answer) == _acts(response), "a turn that goes on does something else"
        assert answer.customStatus == response.customStatus
        assert answer.instanceId == response.instanceId
        assert answer.completionToken == response.completionToken

    def _apply(self, action: pb.OrchestratorAction) -> None:
        match action.WhichOneof("orchestratorActionType"):
            case "scheduleTask":
                task = action.scheduleTask
                self.history.append(ph.new_task_scheduled_event(action.id, task.name, task.input.value))
            case "createTimer":
                fire_at = action.createTimer.fireAt.ToDatetime()
                self.history.append(ph.new_timer_created_event(action.id, fire_at))
            case "createSubOrchestration":
                child = action.createSubOrchestration
                self.history.append(
                    ph.new_sub_orchestration_created_event(
                        action.id, child.name, child.instanceId, child.input.value
                    )
                )
            case "sendEvent":
                sent = action.sendEvent
                self.history.append(
                    ph.new_event_sent_event(
                        action.id, sent.instance.instanceId, sent.data.value, name=sent.name
                    )
                )
            case "sendEntityMessage":
                called = action.sendEntityMessage.entityOperationCalled
                self.history.append(pb.HistoryEvent(eventId=action.id, entityOperationCalled=called))
            case "completeOrchestration":
                self._complete(action.completeOrchestration)
            case other:
                raise AssertionError(other)

    def _complete(self, action: pb.CompleteOrchestrationAction) -> None:
        names = {
            pb.ORCHESTRATION_STATUS_COMPLETED: "completed",
            pb.ORCHESTRATION_STATUS_FAILED: "failed",
            pb.ORCHESTRATION_STATUS_TERMINATED: "terminated",
            pb.ORCHESTRATION_STATUS_CONTINUED_AS_NEW: "continued",
        }
        self.status = names[action.orchestrationStatus]
        self.result = json.loads(action.result.value) if action.result.value else None
        self.failure = action.failureDetails if self.status == "failed" else None
        self.carryover = list(action.carryoverEvents)

    def next_generation(self) -> list[Said]:
        """Start over after a continue-as-new, as the scheduler does."""
        assert self.status == "continued"
        self.history, self.status = [], "running"
        started = ph.new_execution_started_event(self.name, self.instance_id, json.dumps(self.result))
        return self.turn(started, *self.carryover)

    # Events.

    def pending(self, kind: str) -> list[tuple[int, Any]]:
        """Ids and messages of this kind of action that were confirmed and not answered."""
        confirmed = {
            "activity": ("taskScheduled", "taskCompleted", "taskFailed"),
            "child": (
                "subOrchestrationInstanceCreated",
                "subOrchestrationInstanceCompleted",
                "subOrchestrationInstanceFailed",
            ),
            "timer": ("timerCreated", "timerFired"),
            "agent": ("entityOperationCalled", "entityOperationCompleted", "entityOperationFailed"),
        }[kind]
        done: set[Any] = set()
        for event in self.history:
            for name in confirmed[1:]:
                if event.HasField(name):
                    body = getattr(event, name)
                    done.add(
                        body.requestId
                        if kind == "agent"
                        else body.timerId
                        if kind == "timer"
                        else body.taskScheduledId
                    )
        opened: list[tuple[int, Any]] = []
        for event in self.history:
            if event.HasField(confirmed[0]):
                body = getattr(event, confirmed[0])
                key = body.requestId if kind == "agent" else event.eventId
                if key not in done:
                    opened.append((event.eventId, body))
        return opened

    def activity_done(self, result: Any = None, index: int = 0) -> pb.HistoryEvent:
        return ph.new_task_completed_event(self.pending("activity")[index][0], json.dumps(result))

    def activity_failed(self, error: Exception, index: int = 0) -> pb.HistoryEvent:
        return ph.new_task_failed_event(self.pending("activity")[index][0], error)

    def child_done(self, result: Any = None, index: int = 0) -> pb.HistoryEvent:
        task_id = self.pending("child")[index][0]
        return ph.new_sub_orchestration_completed_event(task_id, json.dumps(result))

    def child_failed(self, error: Exception, index: int = 0) -> pb.HistoryEvent:
        return ph.new_sub_orchestration_failed_event(self.pending("child")[index][0], error)

    def timer_fired(self, index: int = 0) -> pb.HistoryEvent:
        timer_id, created = self.pending("timer")[index]
        fire_at = created.fireAt.ToDatetime()
        self.now = max(self.now, fire_at.replace(tzinfo=UTC))
        return ph.new_timer_fired_event(timer_id, fire_at)

    def agent_request(self, index: int = 0) -> dict[str, Any]:
        return json.loads(self.pending("agent")[index][1].input.value)

    def agent_answers(
        self, text: str = "", *, error: str | None = None, usage: dict[str, int] | None = None, index: int = 0
    ) -> pb.HistoryEvent:
        content = (
            {"type": "text", "text": text}
            if error is None
            else {"type": "error", "message": error, "error_code": "ConnectionError"}
        )
        answer = {
            "type": "agent_response",
            "messages": [{"type": "message", "role": "assistant", "contents": [content]}],
            "usage_details": usage,
        }
        return pb.HistoryEvent(
            eventId=-1,
            entityOperationCompleted=pb.EntityOperationCompletedEvent(
                requestId=self.pending("agent")[index][1].requestId,
                output=wrappers_pb2.StringValue(value=json.dumps(answer)),
            ),
        )


def _acts(response: pb.OrchestratorResponse) -> list[str]:
    # The agent framework puts the wall clock into its requests; a stack trace names who called the code.
    copy = pb.OrchestratorResponse()
    copy.CopyFrom(response)
    for action in copy.actions:
        if action.HasField("completeOrchestration"):
            action.completeOrchestration.failureDetails.ClearField("stackTrace")
    return [re.sub(r'\\"created_at\\": \\"[^"]*"', "", str(action)) for action in copy.actions]


def raised(name: str, data: Any = None) -> pb.HistoryEvent:
    return ph.new_event_raised_event(name, json.dumps(data))


def decision(name: str, approved: bool = True, command_id: str = "d1", **fields: Any) -> pb.HistoryEvent:
    command = RaisedCommand(command_id=command_id, kind="decision", name=name, approved=approved, **fields)
    return raised(DECISION_EVENT, command.model_dump(mode="json"))


def event(name: str, data: Any = None, command_id: str = "e1") -> pb.HistoryEvent:
    command = RaisedCommand(command_id=command_id, kind="event", name=name, data=data)
    return raised(DECISION_EVENT, command.model_dump(mode="json"))


def cancel(reason: str | None = None) -> pb.HistoryEvent:
    return raised(CANCEL_EVENT, CancelCommand(command_id="x1", reason=reason).model_dump(mode="json"))


def child_ask(approval_id: str, instance_id: str, **fields: Any) -> pb.HistoryEvent:
    notice = ChildAsk(approval_id=approval_id, instance_id=instance_id, **fields)
    return raised(CHILD_ASK_EVENT, notice.model_dump(mode="json"))


def terminated(output: Any = None) -> pb.HistoryEvent:
    return ph.new_terminated_event(encoded_output=json.dumps(output))


def suspended() -> pb.HistoryEvent:
    return ph.new_suspend_event()


def resumed() -> pb.HistoryEvent:
    return ph.new_resume_event()


def events(said: list[Said]) -> list[Event]:
    return [one.event for one in said if isinstance(one, Publish)]


def told(said: list[Said]) -> list[tuple[str, dict[str, Any]]]:
    """(id, data) of each event."""
    return [(one.id, one.data.model_dump(mode="json", exclude_none=True)) for one in events(said)]


def ids_of(said: list[Said]) -> list[str]:
    return [one.id for one in events(said)]


def raises_on(said: list[Said]) -> list[RaiseOn]:
    return [one for one in said if isinstance(one, RaiseOn)]
