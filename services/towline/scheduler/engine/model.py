"""State of instances, activities, timers and entities, as the engine sees it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final

from durabletask.internal import orchestrator_service_pb2 as pb

RUNNING: Final = int(pb.ORCHESTRATION_STATUS_RUNNING)
COMPLETED: Final = int(pb.ORCHESTRATION_STATUS_COMPLETED)
CONTINUED_AS_NEW: Final = int(pb.ORCHESTRATION_STATUS_CONTINUED_AS_NEW)
FAILED: Final = int(pb.ORCHESTRATION_STATUS_FAILED)
CANCELED: Final = int(pb.ORCHESTRATION_STATUS_CANCELED)
TERMINATED: Final = int(pb.ORCHESTRATION_STATUS_TERMINATED)
PENDING: Final = int(pb.ORCHESTRATION_STATUS_PENDING)
SUSPENDED: Final = int(pb.ORCHESTRATION_STATUS_SUSPENDED)

TERMINAL: Final = frozenset({COMPLETED, FAILED, CANCELED, TERMINATED})


class MessageKind(IntEnum):
    """What an inbox message is, which decides whether it outlives its generation."""

    RESULT = 0
    """Answers something that this execution asked for: dropped at continue-as-new."""
    EXTERNAL = 1
    """Raised from outside: carried over into the next generation."""
    REWIND = 2
    """``executionRewound``: goes out alone, the worker refuses it in company."""
    NUDGE = 3
    """Carries no event: asks for a turn with ``orchestratorStarted`` only (after a rewind)."""


class OperationKind(IntEnum):
    """What waits in an entity's queue."""

    SIGNAL = 0
    CALL = 1
    LOCK = 2


class TimerKind(IntEnum):
    """What a durable timer does when it is due."""

    ORCHESTRATION = 0
    """Delivers ``payload`` (a ``timerFired`` event) to the instance ``target``."""
    START = 1
    """Makes the instance ``target`` runnable (scheduled start)."""
    SIGNAL = 2
    """Delivers ``payload`` (a ``SignalEntityRequest``) to its entity."""


@dataclass(slots=True)
class Message:
    """One event that waits for its instance's next turn."""

    seq: int
    kind: MessageKind
    event: bytes
    durable: bool = False
    """Whether it is on disk. A turn is given nothing else: what it decides is published."""


@dataclass(slots=True)
class Parent:
    """The orchestration that waits for a child's result."""

    row: int
    instance_id: str
    execution_id: str
    task_id: int


@dataclass(slots=True)
class Turn:
    """A turn that a worker holds: what it was sent is what gets appended to history when it answers."""

    token: str
    at: int
    events: list[bytes]
    last_seq: int
    """Highest inbox number that was sent; -1 if none."""


@dataclass(slots=True, eq=False)
class Instance:
    """An orchestration instance. Times are microseconds since the epoch."""

    row: int
    hub: int
    id: str
    name: str
    version: str | None
    execution_id: str
    status: int
    created: int
    updated: int
    start: bytes
    """``ExecutionStartedEvent`` of this generation without its input."""
    completed: int | None = None
    start_at: int | None = None
    custom_status: str | None = None
    custom_inherited: bool = False
    """The custom status is of an earlier generation: kept until this one sets its own."""
    output: str | None = None
    failure: bytes | None = None
    parent: Parent | None = None
    trace: bytes | None = None
    """``OrchestrationTraceContext`` of the last response of this execution."""
    turn_at: int = 0
    """Time of the last turn; the next one is later."""
    history_events: int = 0
    history_bytes: int = 0
    history_seq: int = 0
    """Number of the next history chunk of this generation."""
    locks: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    """Entities that each critical section of this execution holds or asks for."""
    inbox: list[Message] = field(default_factory=list[Message])

    # Kept in memory only.
    inbox_bytes: int = 0
    """Of the messages in the inbox."""
    input: str | None = None
    input_known: bool = False
    chunks: list[bytes] | None = None
    """History as encoded ``pastEvents`` fields; None if it has to be read."""
    turn: Turn | None = None
    has_timers: bool = False
    """It may have timers to clear away when it ends."""
    losses: int = 0
    """Turns in a row that were lost with their worker."""
    deleted: bool = False
    accounted: int = 0
    """Bytes that the memory budget counts for it."""
    pins: int = 0
    """Batches under way that write this instance: it may not be evicted or read from the file."""
    unsettled: int = 0
    """Turns of it that are not on disk: the next one waits, as it builds on what they did."""

    @property
    def weight(self) -> int:
        """About how many bytes its history, messages, input and output take in memory."""
        history = self.history_bytes if self.chunks is not None else 0
        return history + self.inbox_bytes + len(self.input or "") + len(self.output or "")

    @property
    def terminal(self) -> bool:
        """Whether it has ended."""
        return self.status in TERMINAL

    @property
    def runnable(self) -> bool:
        """Whether a turn may be handed out now."""
        return (
            bool(self.inbox)
            and self.inbox[0].durable
            and self.turn is None
            and not self.unsettled
            and self.status not in TERMINAL
            and self.status != SUSPENDED
            and self.start_at is None
            and not self.deleted
        )

    def columns(self) -> tuple[object, ...]:
        """Values of the row, in the order of the table."""
        parent = self.parent
        return (
            self.row,
            self.hub,
            self.id,
            self.name,
            self.version,
            self.execution_id,
            self.status,
            self.created,
            self.updated,
            self.completed,
            self.start_at,
            self.custom_status,
            int(self.custom_inherited),
            self.output,
            self.failure,
            parent.row if parent else None,
            parent.instance_id if parent else None,
            parent.execution_id if parent else None,
            parent.task_id if parent else None,
            self.start,
            self.trace,
            self.turn_at,
            self.history_events,
            self.history_bytes,
            self.history_seq,
            json.dumps(self.locks) if self.locks else None,
        )


@dataclass(slots=True, eq=False)
class Activity:
    """An activity that was scheduled and has no result yet."""

    row: int
    hub: int
    instance_id: str
    execution_id: str
    task_id: int
    name: str
    version: str | None
    """The orchestration's, if the action has none: version filters list activities too."""
    request: bytes | None
    """Serialized ``ActivityRequest``; None if it has to be read."""
    instance_row: int
    attempt: int = 0
    """Times it was handed out; part of the token, which tells one hand-out from the next."""

    # Kept in memory only.
    losses: int = 0
    """Times it was lost with its worker or given back."""
    done: bool = False

    def columns(self) -> tuple[object, ...]:
        """Values of the row, in the order of the table."""
        return (
            self.row,
            self.hub,
            self.instance_row,
            self.instance_id,
            self.execution_id,
            self.task_id,
            self.name,
            self.version,
            self.request,
            self.attempt,
            0,
            None,
        )


@dataclass(slots=True)
class Timer:
    """Something that happens at a time, whatever restarts in between."""

    row: int
    hub: int
    fire_at: int
    kind: TimerKind
    target: int
    """Row of the instance; 0 for a delayed signal."""
    target_id: str
    execution_id: str
    payload: bytes


@dataclass(slots=True)
class Operation:
    """A signal, call or lock request in an entity's queue."""

    row: int
    kind: OperationKind
    request_id: str
    request: bytes
    """Serialized ``OperationRequest``; of a lock request, its lock set as JSON."""
    caller: str | None = None
    caller_execution: str | None = None
    position: int = 0
    durable: bool = False
    """Whether it is on disk."""

    def lock_set(self) -> list[str]:
        """Entity ids of a lock request, in the order in which they are taken."""
        return json.loads(self.request)


@dataclass(slots=True)
class Batch:
    """Operations that a worker holds."""

    token: str
    operations: list[Operation]


@dataclass(slots=True, eq=False)
class Entity:
    """An entity. It has a row only while it has state, waiting operations or a lock."""

    row: int
    hub: int
    id: str
    state: str | None = None
    modified: int = 0
    lock_section: str | None = None
    lock_holder: str | None = None
    lock_execution: str | None = None
    turn: int = 0
    """Batches completed so far: part of the token."""
    attempt: int = 0
    """Times the batch after those was handed out."""
    queue: list[Operation] = field(default_factory=list[Operation])

    # Kept in memory only.
    queue_bytes: int = 0
    """Of the operations in the queue."""
    stored: bool = False
    """Whether it has a row (or will have one at the next commit)."""
    batch: Batch | None = None
    losses: int = 0
    deleted: bool = False
    pins: int = 0
    accounted: int = 0
    """Bytes that the memory budget counts for it."""
    unsettled: int = 0
    """Outcomes and lock changes of it that are not on disk: the next batch waits, as it builds on them."""

    @property
    def name(self) -> str:
        """Name that worker filters list: lower case, between the first two ``@``."""
        return self.id.split("@", 2)[1]

    @property
    def empty(self) -> bool:
        """Whether nothing of it is worth keeping."""
        return self.state is None and not self.queue and self.lock_section is None

    def admissible(self) -> list[Operation]:
        """Operations that may run now, in arrival order.

        While locked, only calls of the holder; otherwise everything before the first lock request.
        """
        if self.lock_section is not None:
            return [
                op
                for op in self.queue
                if op.kind == OperationKind.CALL
                and op.caller == self.lock_holder
                and op.caller_execution == self.lock_execution
            ]
        for index, op in enumerate(self.queue):
            if op.kind == OperationKind.LOCK:
                return self.queue[:index]
        return self.queue

    @property
    def due(self) -> bool:
        """Whether a batch is to be handed out, once what it builds on is on disk."""
        if self.batch is not None or self.deleted or not self.queue:
            return False
        if self.lock_section is None:
            # As `admissible` says, without going through all that wait: it is asked for each signal.
            return self.queue[0].kind != OperationKind.LOCK
        return bool(self.admissible())

    @property
    def runnable(self) -> bool:
        """Whether a batch may be handed out now."""
        return not self.unsettled and self.due

    def columns(self) -> tuple[object, ...]:
        """Values of the row, in the order of the table."""
        return (
            self.row,
            self.hub,
            self.id,
            self.state,
            self.modified,
            self.lock_section,
            self.lock_holder,
            self.lock_execution,
            self.turn,
            self.attempt,
            int(self.attempt > 0),
            None,
        )
