"""Entities: queues of operations, batches, locks."""

from __future__ import annotations

import json

from durabletask.internal import orchestrator_service_pb2 as pb

from towline.scheduler.engine import events, wire
from towline.scheduler.engine.changes import Changes
from towline.scheduler.engine.errors import InvalidRequestError
from towline.scheduler.engine.model import (
    Batch,
    Entity,
    Instance,
    MessageKind,
    Operation,
    OperationKind,
    Timer,
    TimerKind,
)
from towline.scheduler.engine.ports import World


def normal_id(entity_id: str) -> str:
    """``@name@key`` with the name in lower case; the key may contain further ``@``.

    Raises:
        InvalidRequestError: It is not of that form.
    """
    parts = entity_id.split("@", 2)
    if len(parts) != 3 or parts[0] or not parts[1]:
        raise InvalidRequestError(f"'{entity_id}' is no entity id: expected '@name@key'")
    return f"@{parts[1].lower()}@{parts[2]}"


def is_entity_id(instance_id: str) -> bool:
    """Whether an instance id names an entity."""
    return instance_id.startswith("@") and instance_id.count("@") > 1


def enqueue(changes: Changes, world: World, entity: Entity, op: Operation, now: int) -> None:
    """Put an operation at the end of the queue and see what may run."""
    changes.add_operation(entity, op)
    advance(changes, world, entity, now)


def signal(changes: Changes, world: World, hub: int, request: pb.SignalEntityRequest, now: int) -> None:
    """Accept a signal, or keep it until its time.

    Raises:
        InvalidRequestError: The entity id is none.
    """
    entity_id = normal_id(request.instanceId)
    if request.HasField("scheduledTime"):
        fire_at = wire.micros(request.scheduledTime)
        if fire_at > now:
            changes.add_timer(
                Timer(
                    world.next_row(),
                    hub,
                    fire_at,
                    TimerKind.SIGNAL,
                    0,
                    entity_id,
                    "",
                    request.SerializeToString(),
                )
            )
            return
    operation = pb.OperationRequest(
        operation=request.name,
        requestId=request.requestId,
        input=request.input if request.HasField("input") else None,
        traceContext=request.parentTraceContext if request.HasField("parentTraceContext") else None,
    )
    op = Operation(world.next_row(), OperationKind.SIGNAL, request.requestId, operation.SerializeToString())
    enqueue(changes, world, world.entity(hub, entity_id), op, now)


def signal_from_client(
    changes: Changes, world: World, hub: int, request: pb.SignalEntityRequest, now: int
) -> None:
    """Accept a signal of a sender that can be refused.

    Raises:
        InvalidRequestError: The entity id is none.
        TooLargeError: Too much waits for the entity already.
    """
    entity = world.entity(hub, normal_id(request.instanceId))
    world.limits.check_room(f"queue of {entity.id}", len(entity.queue), entity.queue_bytes)
    signal(changes, world, hub, request, now)


def advance(changes: Changes, world: World, entity: Entity, now: int) -> None:
    """Grant the lock request at the head of the queue, if any, and announce a runnable entity.

    A lock request visits its entities one after the other in the order of its lock set. As all sets are
    sorted alike, two requests can never wait for each other.
    """
    changed = [entity]
    while changed:  # a loop: a lock set may have more entities than Python has frames
        entity = changed.pop()
        while (
            entity.batch is None
            and entity.lock_section is None
            and entity.queue
            and entity.queue[0].kind == OperationKind.LOCK
        ):
            op = entity.queue[0]
            changes.remove_operation(entity, op)
            following = _take_lock(changes, world, entity, op, now)
            if following is not None:
                changed.append(following)
        if entity.due:
            changes.ready_entities[entity.row] = entity


def _take_lock(changes: Changes, world: World, entity: Entity, op: Operation, now: int) -> Entity | None:
    """Answers the entity that the request goes on to, if it does."""
    lock_set = op.lock_set()
    section = op.request_id
    holder = _live_caller(world, entity.hub, op.caller, op.caller_execution)
    if holder is None or section not in holder.locks:
        return None  # the holder has ended; its end released what it had got so far
    entity.lock_section = section
    entity.lock_holder = op.caller
    entity.lock_execution = op.caller_execution
    changes.touch_entity(entity)
    position = op.position + 1
    if position == len(lock_set):
        changes.post(holder, events.lock_granted(now, section), MessageKind.RESULT)
        return None
    forwarded = Operation(
        world.next_row(), OperationKind.LOCK, section, op.request, op.caller, op.caller_execution, position
    )
    following = world.entity(entity.hub, lock_set[position])
    changes.add_operation(following, forwarded)
    return following


def _live_caller(
    world: World, hub: int, instance_id: str | None, execution_id: str | None
) -> Instance | None:
    """The instance that waits for an answer, unless it has ended or started over."""
    if instance_id is None:
        return None
    instance = world.instance(hub, instance_id)
    if instance is None or instance.terminal or instance.execution_id != execution_id:
        return None
    return instance


def request_lock(
    changes: Changes, world: World, instance: Instance, request: pb.EntityLockRequestedEvent, now: int
) -> None:
    """Start to acquire the entities of a critical section."""
    # Sorted and without doubles, whatever the worker does: otherwise requests could wait for each other.
    lock_set = sorted({normal_id(entity_id) for entity_id in request.lockSet})
    section = request.criticalSectionId
    instance.locks[section] = sorted({*lock_set, *instance.locks.get(section, ())})
    changes.touch(instance)
    op = Operation(
        world.next_row(),
        OperationKind.LOCK,
        section,
        json.dumps(lock_set).encode(),
        instance.id,
        instance.execution_id,
    )
    enqueue(changes, world, world.entity(instance.hub, lock_set[0]), op, now)


def unlock(
    changes: Changes, world: World, instance: Instance, section: str, entity_id: str, now: int
) -> None:
    """Release one entity of a critical section."""
    held = instance.locks.get(section)
    if held is None or entity_id not in held:
        return
    held.remove(entity_id)
    if not held:
        del instance.locks[section]
    changes.touch(instance)
    _release(changes, world, world.entity(instance.hub, entity_id), section, now)


def release_all(changes: Changes, world: World, instance: Instance, now: int) -> None:
    """Release what an execution holds and drop what it asks for, because it ends."""
    locks, instance.locks = instance.locks, {}
    for section, held in locks.items():
        for entity_id in held:
            _release(changes, world, world.entity(instance.hub, entity_id), section, now)


def _release(changes: Changes, world: World, entity: Entity, section: str, now: int) -> None:
    waiting = [op for op in entity.queue if op.kind == OperationKind.LOCK and op.request_id == section]
    for op in waiting:
        changes.remove_operation(entity, op)
    if entity.lock_section == section:
        entity.lock_section = entity.lock_holder = entity.lock_execution = None
        changes.unsettle(entity)
    elif not waiting:
        return
    changes.touch_entity(entity)
    advance(changes, world, entity, now)


def release_orphan(changes: Changes, world: World, entity: Entity, now: int) -> bool:
    """Release a lock whose holder is gone. Answers whether it was one."""
    section = entity.lock_section
    if (
        section is None
        or _live_caller(world, entity.hub, entity.lock_holder, entity.lock_execution) is not None
    ):
        return False
    _release(changes, world, entity, section, now)
    return True


def begin_batch(
    changes: Changes, world: World, entity: Entity, token: str, now: int, *, ahead: bool = False
) -> bytes | None:
    """Hand out the operations that may run, as a work item: those on disk, and `ahead` of it also calls.

    Who signals is told whether the signal is accepted, and may rely on it; who calls is a turn, and calls
    again if it has to be repeated.

    Operations that cannot fit into a work item even alone fail here, and the state stays.

    Returns:
        The encoded work item; None if there is nothing to run.
    """
    limits = world.limits
    state = None if entity.state is None else entity.state.encode()
    room = limits.work_item_bytes - wire.ENVELOPE_BYTES - len(entity.id) - len(state or b"")
    taken: list[Operation] = []
    size = 0
    for op in list(entity.admissible()):
        if not op.durable and not (ahead and op.kind == OperationKind.CALL):
            break
        length = len(op.request)
        if length > room:
            if taken:
                break
            failure = events.too_large(
                f"state of entity {entity.id} and operation",
                length + len(state or b""),
                limits.work_item_bytes,
            )
            _answer_failure(changes, world, entity, op, failure, now)
            changes.remove_operation(entity, op)
            continue
        if taken and (size + length > min(limits.batch_bytes, room) or len(taken) == limits.batch_operations):
            break
        taken.append(op)
        size += length
    if not taken:
        changes.touch_entity(entity)
        advance(changes, world, entity, now)
        return None
    entity.batch = Batch(f"{token}:{_numbers(taken)}", taken)
    return wire.entity_item(
        entity_id=entity.id.encode(),
        state=state,
        operations=[op.request for op in taken],
        token=entity.batch.token.encode(),
    )


def _numbers(operations: list[Operation]) -> str:
    """Row numbers of a batch, so that its answer is understood after a restart too."""
    first = operations[0].row
    return f"{first:x}" + "".join(f"-{op.row - first:x}" for op in operations[1:])


def find_batch(entity: Entity, numbers: str) -> list[Operation] | None:
    """Operations of a batch that an earlier process handed out; None if any of them is gone."""
    first, *rest = numbers.split("-")
    base = int(first, 16)
    by_row = {op.row: op for op in entity.queue}
    found = [by_row.get(row) for row in (base, *(base + int(offset, 16) for offset in rest))]
    return None if None in found else [op for op in found if op is not None]


def complete_batch(
    changes: Changes,
    world: World,
    entity: Entity,
    operations: list[Operation],
    result: pb.EntityBatchResult,
    now: int,
) -> None:
    """Commit the outcome of a batch: state, answers, signals, new orchestrations."""
    from towline.scheduler.engine import lifecycle  # the two need each other

    entity.batch = None
    entity.turn += 1
    entity.attempt = 0
    entity.losses = 0
    changes.touch_entity(entity)
    changes.unsettle(entity)
    if result.HasField("failureDetails"):
        for op in operations:
            _answer_failure(changes, world, entity, op, result.failureDetails, now)
            changes.remove_operation(entity, op)
        advance(changes, world, entity, now)
        return
    state = result.entityState.value if result.HasField("entityState") else None
    if state != entity.state:
        entity.state = state
        entity.modified = now
    elif not entity.modified:
        entity.modified = now
    for op, outcome in zip(operations, result.results, strict=False):
        _answer(changes, world, entity, op, outcome, now)
        changes.remove_operation(entity, op)
    # What has no result stays queued and runs again: at least once.
    for action in result.actions:
        kind = action.WhichOneof("operationActionType")
        if kind == "sendSignal":
            _send_signal(changes, world, entity.hub, action.sendSignal, now)
        elif kind == "startNewOrchestration":
            lifecycle.start_from_entity(changes, world, entity.hub, action.startNewOrchestration, now)
    advance(changes, world, entity, now)


def fail_batch(
    changes: Changes,
    world: World,
    entity: Entity,
    operations: list[Operation],
    failure: pb.TaskFailureDetails,
    now: int,
) -> None:
    """Fail all operations of a batch and keep the state."""
    complete_batch(changes, world, entity, operations, pb.EntityBatchResult(failureDetails=failure), now)


def _send_signal(changes: Changes, world: World, hub: int, action: pb.SendSignalAction, now: int) -> None:
    request = pb.SignalEntityRequest(
        instanceId=action.instanceId,
        name=action.name,
        input=action.input if action.HasField("input") else None,
        requestId=world.new_id(),
        scheduledTime=action.scheduledTime if action.HasField("scheduledTime") else None,
        parentTraceContext=action.parentTraceContext if action.HasField("parentTraceContext") else None,
    )
    try:
        signal(changes, world, hub, request, now)
    except InvalidRequestError as error:
        # An action cannot be refused any more: its operation has succeeded.
        changes.dropped.append((action.instanceId, str(error)))


def _answer(
    changes: Changes, world: World, entity: Entity, op: Operation, outcome: pb.OperationResult, now: int
) -> None:
    if op.kind != OperationKind.CALL:
        return
    if outcome.HasField("failure"):
        _answer_failure(changes, world, entity, op, outcome.failure.failureDetails, now)
        return
    # Only the execution that called gets the result: any other would fail on an unknown request id.
    caller = _live_caller(world, entity.hub, op.caller, op.caller_execution)
    if caller is None:
        return
    success = outcome.success
    output = success.result.value if success.HasField("result") else None
    limit = world.limits.payload_bytes
    if output is not None and len(output) > limit // 4 and len(output.encode()) > limit:
        too_large = events.too_large(f"result of {entity.id}", len(output.encode()), limit)
        changes.post(caller, events.operation_failed(now, op.request_id, too_large), MessageKind.RESULT)
        return
    changes.post(caller, events.operation_completed(now, op.request_id, output), MessageKind.RESULT)


def _answer_failure(
    changes: Changes, world: World, entity: Entity, op: Operation, failure: pb.TaskFailureDetails, now: int
) -> None:
    if op.kind != OperationKind.CALL:
        changes.dropped.append((entity.id, f"{failure.errorType}: {failure.errorMessage[:1_000]}"))
        return
    caller = _live_caller(world, entity.hub, op.caller, op.caller_execution)
    if caller is not None:
        changes.post(caller, events.operation_failed(now, op.request_id, failure), MessageKind.RESULT)
