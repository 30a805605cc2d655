"""Orchestrator turns: handing one out, and committing its outcome in one piece."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from itertools import islice, takewhile
from typing import Final

from durabletask.internal import orchestrator_service_pb2 as pb

from towline.scheduler.engine import actions, events, generations, lifecycle, rewind, wire
from towline.scheduler.engine.changes import Changes
from towline.scheduler.engine.model import (
    CONTINUED_AS_NEW,
    PENDING,
    RUNNING,
    TERMINAL,
    Instance,
    MessageKind,
    Turn,
)
from towline.scheduler.engine.ports import Limits, World

_WORTH_LEAVING_OUT_BYTES: Final = 16_384
"""Less is sent sooner than it is fetched, should the worker need it after all."""


class Reader(Enum):
    """How much of the history a worker needs with a turn."""

    STOCK = "all of it, always"
    FETCHES = "what fits; the rest it can fetch"
    KEEPS = "as little as shows that nothing has happened since its own last turn; the rest it can fetch"


def begin(
    changes: Changes,
    world: World,
    instance: Instance,
    token: str,
    now: int,
    *,
    reader: Reader = Reader.STOCK,
) -> bytes | None:
    """Hand out a turn with everything in the inbox that is on disk.

    Writes nothing unless the instance has to be failed because its history is too large.

    Args:
        changes: Takes what changes.
        world: Where all else is.
        instance: Whose turn it is.
        token: The turn's token.
        now: The time.
        reader: What the worker does with histories.

    Returns:
        The encoded work item; None if the instance was failed.
    """
    limits = world.limits
    durable = takewhile(lambda message: message.durable, instance.inbox)
    messages = list(islice(durable, limits.turn_events))
    if messages[0].kind == MessageKind.REWIND:
        messages = messages[:1]  # the worker refuses a rewind in company
    at = max(now, instance.turn_at + 1)
    new_events = [events.orchestrator_started(at)]
    chunks = world.load_history(instance)
    history = _history_for(reader, limits, instance, chunks)
    whole = history is chunks
    history_bytes = instance.history_bytes if whole else sum(map(len, history))
    room = limits.work_item_bytes - wire.ENVELOPE_BYTES - history_bytes - len(instance.id)
    size = len(new_events[0])
    last_seq = -1
    for message in messages:
        length = len(message.event) + 8
        if size + length > room and last_seq >= 0:
            break
        if message.kind == MessageKind.REWIND and last_seq >= 0:
            break
        size += length
        last_seq = message.seq
        if message.event:
            new_events.append(message.event)
    limit = limits.work_item_bytes if whole else limits.history_bytes
    if size > room or instance.history_bytes > limit:
        failure = events.too_large(f"history of '{instance.id}'", size + instance.history_bytes, limit)
        lifecycle.fail(changes, world, instance, failure, now)
        return None
    instance.turn = Turn(token, at, new_events, last_seq)
    return wire.orchestrator_item(
        instance_id=instance.id.encode(),
        execution_id=instance.execution_id.encode(),
        history=history,
        history_length=None if whole else instance.history_events,
        new_events=new_events,
        trace=instance.trace,
        token=token.encode(),
    )


def _history_for(reader: Reader, limits: Limits, instance: Instance, chunks: list[bytes]) -> list[bytes]:
    """The chunks that go out with the turn: all, its first and last turn's, or none."""
    if reader is Reader.STOCK:
        return chunks
    most = limits.work_item_bytes // 2
    if reader is Reader.KEEPS and len(chunks) > 2:
        # The first has what the execution was started with.
        ends = [chunks[0], chunks[-1]]
        size = len(ends[0]) + len(ends[1])
        if instance.history_bytes - size > _WORTH_LEAVING_OUT_BYTES and size <= most:
            return ends
    return chunks if instance.history_bytes <= most else []


def complete(
    changes: Changes, world: World, instance: Instance, response: pb.OrchestratorResponse, now: int
) -> None:
    """Commit a turn: its events, what it asked for, and its end if it ended.

    The instance must have the turn that is answered. A response that makes no sense fails the instance, so
    that it is never left running with nothing to wake it.
    """
    turn = instance.turn
    assert turn is not None
    problem = _problem(instance, response.actions)
    if problem is not None:
        lifecycle.fail(changes, world, instance, events.failure("InvalidOrchestratorResponse", problem), now)
        return
    instance.turn_at = turn.at
    instance.turn = None
    instance.losses = 0
    instance.updated = now
    changes.touch(instance)
    changes.unsettle(instance)
    changes.take(instance, turn.last_seq)
    if len(response.actions) == 1 and response.actions[0].HasField("rewindOrchestration"):
        rewind.apply(changes, world, instance, response.actions[0].rewindOrchestration, now)
        return
    if response.HasField("orchestrationTraceContext"):
        instance.trace = response.orchestrationTraceContext.SerializeToString() or None
    end = _end(response.actions)
    _set_custom_status(instance, response, end)
    if instance.status == PENDING:
        instance.status = RUNNING
        changes.changed[instance.row] = instance

    step = actions.Step(changes, world, instance, response, now, continuing=_continues(end))
    confirmed = turn.events
    for action in response.actions:
        confirmed += actions.perform(step, action)
        if instance.terminal:
            return  # it has terminated an ancestor with all its descendants, and so itself
    if end is not None and step.continuing:
        generations.continue_as_new(changes, world, instance, end.completeOrchestration, now)
        return
    confirmed.append(events.orchestrator_completed(now))
    if end is not None:
        complete_action = end.completeOrchestration
        confirmed.append(
            lifecycle.finish(
                changes,
                world,
                instance,
                status=complete_action.orchestrationStatus,
                output=complete_action.result.value if complete_action.HasField("result") else None,
                failure=complete_action.failureDetails
                if complete_action.HasField("failureDetails")
                else None,
                now=now,
            )
        )
    changes.append_history(instance, wire.fields(wire.PAST_EVENT, confirmed), len(confirmed))
    if end is None:
        if instance.history_events > world.limits.history_events:
            message = (
                f"the history has {instance.history_events} events, "
                f"the limit is {world.limits.history_events}: "
                "use continue-as-new in loops"
            )
            lifecycle.fail(changes, world, instance, events.failure("HistoryTooLong", message), now)
        elif instance.inbox:
            changes.ready[instance.row] = instance


def _problem(instance: Instance, all_actions: Sequence[pb.OrchestratorAction]) -> str | None:
    if instance.inbox and instance.inbox[0].kind == MessageKind.REWIND:
        return _problem_of_rewind(instance, all_actions)
    for action in all_actions:
        kind = action.WhichOneof("orchestratorActionType")
        if kind == "rewindOrchestration":
            return "a rewind answers a turn that asked for none"
        if kind is None or not actions.known(action, kind):
            return f"action {action.id} is of an unknown or incomplete kind ({kind})"
    return None


def _problem_of_rewind(instance: Instance, all_actions: Sequence[pb.OrchestratorAction]) -> str | None:
    # A worker that cannot rewind reports a failure instead.
    if len(all_actions) == 1:
        action = all_actions[0]
        if action.HasField("rewindOrchestration"):
            return rewind.problem(instance, action.rewindOrchestration.newHistory)
        if action.HasField("completeOrchestration") and (
            action.completeOrchestration.orchestrationStatus in TERMINAL
        ):
            return None
    return "a rewind must be answered by one action: a rewound history, or an end"


def _end(all_actions: Sequence[pb.OrchestratorAction]) -> pb.OrchestratorAction | None:
    for action in all_actions:
        if action.HasField("completeOrchestration"):
            return action
    return None


def _continues(end: pb.OrchestratorAction | None) -> bool:
    return end is not None and end.completeOrchestration.orchestrationStatus == CONTINUED_AS_NEW


def _set_custom_status(
    instance: Instance, response: pb.OrchestratorResponse, end: pb.OrchestratorAction | None
) -> None:
    # The worker replays everything, so an absent status means none. Not so in a new generation before it
    # has set one of its own, nor when the worker only reports that it could not run the turn (action id
    # -1).
    if response.HasField("customStatus"):
        instance.custom_status = response.customStatus.value
        instance.custom_inherited = False
    elif not instance.custom_inherited and not (end is not None and end.id == -1):
        instance.custom_status = None


def lost(changes: Changes, world: World, instance: Instance, now: int, *, counts: bool) -> None:
    """A turn was abandoned, or its worker went away. The same messages go out again.

    Args:
        changes: Batch to write to.
        world: Access to the rest.
        instance: Instance whose turn it was.
        now: Time in microseconds.
        counts: Whether the turn may be what killed the worker.
    """
    instance.turn = None
    if counts:
        instance.losses += 1
        if instance.losses >= world.limits.losses:
            message = f"the turn was handed out {instance.losses} times and its worker was lost each time"
            lifecycle.fail(changes, world, instance, events.failure("PoisonWorkItem", message), now)
