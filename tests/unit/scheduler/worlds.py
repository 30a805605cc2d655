"""An engine world in plain dictionaries, and a worker made of the SDK's own executor."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from durabletask.internal import orchestrator_service_pb2 as pb
from durabletask.serialization import JsonDataConverter
from durabletask.worker import _OrchestrationExecutor, _Registry  # pyright: ignore[reportPrivateUsage]

from towline.scheduler.engine import entities, lifecycle, tasks, turns
from towline.scheduler.engine.changes import Changes
from towline.scheduler.engine.model import Activity, Entity, Instance, Timer
from towline.scheduler.engine.ports import Limits

HUB = 1
START = 1_700_000_000_000_000
_log = logging.getLogger("tests.scheduler")
_log.setLevel(logging.CRITICAL)


@dataclass
class DictWorld:
    """``World`` without a file: what a commit would write is applied at once."""

    limits: Limits = field(default_factory=Limits)
    instances: dict[str, Instance] = field(default_factory=dict)
    entity_map: dict[str, Entity] = field(default_factory=dict)
    open: dict[int, Activity] = field(default_factory=dict)
    rows: int = 0
    ids: int = 0

    def instance(self, hub: int, instance_id: str) -> Instance | None:
        found = self.instances.get(instance_id)
        return None if found is None or found.deleted else found

    def adopt(self, instance: Instance) -> None:
        self.instances[instance.id] = instance

    def children(self, parent: Instance) -> list[Instance]:
        return [
            one
            for one in self.instances.values()
            if one.parent is not None and one.parent.row == parent.row and not one.deleted
        ]

    def activities(self, instance: Instance) -> list[Activity]:
        return [one for one in self.open.values() if one.instance_row == instance.row]

    def open_activity(self, activity: Activity) -> None:
        self.open[activity.row] = activity

    def close_activity(self, activity: Activity) -> None:
        self.open.pop(activity.row, None)

    def entity(self, hub: int, entity_id: str) -> Entity:
        return self.entity_map.setdefault(entity_id, Entity(self.next_row(), hub, entity_id))

    def next_row(self) -> int:
        self.rows += 1
        return self.rows

    def new_id(self) -> str:
        self.ids += 1
        return f"id{self.ids}"

    def load_input(self, instance: Instance) -> str | None:
        return instance.input

    def load_history(self, instance: Instance) -> list[bytes]:
        assert instance.chunks is not None
        return instance.chunks


class Bench:
    """Runs an engine with a pretend worker and a clock that only tests move."""

    def __init__(self) -> None:
        self.world = DictWorld()
        self.changes = Changes()
        self.now = START
        self.timers: list[Timer] = []
        self.registry = _Registry()
        self.tokens = 0
        self.dispatched: list[Activity] = []

    def settle(self) -> None:
        """What a commit does: take timers and activities, forget the batch."""
        self.changes.written()
        self.timers += self.changes.timers
        self.dispatched += [one for one in self.changes.activities if not one.done]
        self.changes = Changes()

    def start(
        self, name: str, data: str | None = None, instance_id: str = "run", **fields: object
    ) -> Instance:
        request = pb.CreateInstanceRequest(instanceId=instance_id, name=name, **fields)
        if data is not None:
            request.input.value = data
        instance = lifecycle.start(self.changes, self.world, HUB, request, self.now)
        self.settle()
        return instance

    def begin(self, instance: Instance) -> pb.OrchestratorRequest:
        """Hand a turn out, after the commit that made it due."""
        self.settle()
        self.now += 10
        self.tokens += 1
        item = turns.begin(self.changes, self.world, instance, f"t{self.tokens}", self.now)
        assert item is not None
        return pb.WorkItem.FromString(item).orchestratorRequest

    def answer(self, instance: Instance, *actions: pb.OrchestratorAction, status: str | None = None) -> None:
        """Answer the turn that is out."""
        response = pb.OrchestratorResponse(instanceId=instance.id, actions=actions)
        if status is not None:
            response.customStatus.value = status
        turns.complete(self.changes, self.world, instance, response, self.now)
        self.settle()

    def execute(self, instance: Instance) -> None:
        """One turn by the SDK's executor."""
        request = self.begin(instance)
        executor = _OrchestrationExecutor(self.registry, _log, JsonDataConverter())
        result = executor.execute(instance.id, request.pastEvents, request.newEvents)
        response = pb.OrchestratorResponse(instanceId=instance.id, actions=result.actions)
        turns.complete(self.changes, self.world, instance, response, self.now)
        self.settle()

    def finish_activity(self, activity: Activity, result: str | None, *, error: str | None = None) -> None:
        """A worker answers for an activity."""
        response = pb.ActivityResponse(taskId=activity.task_id)
        if error is not None:
            response.failureDetails.errorType = error
        elif result is not None:
            response.result.value = result
        tasks.complete_activity(self.changes, self.world, activity, response, self.now)
        self.settle()

    def fire_due(self) -> None:
        """Fire the timers that are due."""
        due = [timer for timer in self.timers if timer.fire_at <= self.now]
        self.timers = [timer for timer in self.timers if timer.fire_at > self.now]
        for timer in due:
            tasks.fire(self.changes, self.world, timer, self.now)
        self.settle()

    def run_entity(
        self, entity: Entity, step: Callable[[str | None, pb.OperationRequest], tuple[str | None, str]]
    ) -> None:
        """Run one batch of an entity; ``step`` maps state and operation to state and result."""
        self.settle()
        item = entities.begin_batch(self.changes, self.world, entity, "e", self.now)
        if item is None:
            self.settle()
            return
        request = pb.WorkItem.FromString(item).entityRequest
        state = request.entityState.value if request.HasField("entityState") else None
        results: list[pb.OperationResult] = []
        for operation in request.operations:
            state, text = step(state, operation)
            result = pb.OperationResult()
            result.success.result.value = text
            results.append(result)
        answer = pb.EntityBatchResult(results=results)
        if state is not None:
            answer.entityState.value = state
        assert entity.batch is not None
        entities.complete_batch(self.changes, self.world, entity, entity.batch.operations, answer, self.now)
        self.settle()


def history(instance: Instance) -> list[pb.HistoryEvent]:
    """Committed events."""
    assert instance.chunks is not None
    return list(pb.OrchestratorRequest.FromString(b"".join(instance.chunks)).pastEvents)
