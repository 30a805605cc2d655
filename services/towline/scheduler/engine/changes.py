"""Effects: what a commit has to write, and what may be seen once it has."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

from towline.scheduler.engine.model import Activity, Entity, Instance, Message, MessageKind, Operation, Timer

Row: TypeAlias = tuple[str, tuple[object, ...]]
"""Name of a statement and its values."""

SEQ_BITS = 20
"""Chunks and messages have the key ``row << 20 | number``: clustered, read and deleted by range."""
MAX_SEQ = (1 << SEQ_BITS) - 1


def key(row: int, seq: int) -> int:
    """Key of the ``seq``-th chunk or message of an instance."""
    return row << SEQ_BITS | seq


@dataclass(slots=True)
class Changes:
    """One batch of changes that is committed as a whole.

    Rows of instances and entities are written once a batch, with the values they have at the end of it.
    """

    rows: list[Row] = field(default_factory=list[Row])
    created: dict[int, Instance] = field(default_factory=dict[int, Instance])
    touched: dict[int, Instance] = field(default_factory=dict[int, Instance])
    entities: dict[int, Entity] = field(default_factory=dict[int, Entity])

    pinned: list[Instance | Entity] = field(default_factory=list["Instance | Entity"])

    # Looked at after the commit.
    added: list[Message | Operation] = field(default_factory=list["Message | Operation"])
    """What may be handed out from then on."""
    unsettled: list[Instance | Entity] = field(default_factory=list["Instance | Entity"])
    ready: dict[int, Instance] = field(default_factory=dict[int, Instance])
    activities: list[Activity] = field(default_factory=list[Activity])
    ready_entities: dict[int, Entity] = field(default_factory=dict[int, Entity])
    timers: list[Timer] = field(default_factory=list[Timer])
    changed: dict[int, Instance] = field(default_factory=dict[int, Instance])
    """Instances whose status changed: waiters look again."""
    removed: list[Instance] = field(default_factory=list[Instance])
    dropped: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    """Whom something was for that can be neither delivered nor refused any more, and why: for the log."""

    def __bool__(self) -> bool:
        return bool(self.rows or self.created or self.touched or self.entities)

    def written(self) -> None:
        """It is on disk."""
        for one in self.added:
            one.durable = True
        for state in self.unsettled:
            state.unsettled -= 1

    @property
    def is_one_turn(self) -> bool:
        """Whether it changes one instance and lets one entity run: one turn that has called an agent."""
        return len(self.touched) == 1 and len(self.ready_entities) == 1 and not self.created

    def pin(self, state: Instance | Entity) -> None:
        """Keep ``state`` in memory until this batch is committed: until then the file has an older one."""
        state.pins += 1
        self.pinned.append(state)

    def unsettle(self, state: Instance | Entity) -> None:
        """Hand out nothing more of ``state`` until this is on disk: what goes out would build on it."""
        state.unsettled += 1
        self.unsettled.append(state)

    def create(self, instance: Instance) -> None:
        """Insert an instance."""
        self.pin(instance)
        self.created[instance.row] = instance

    def touch(self, instance: Instance) -> None:
        """Write an instance's row."""
        row = instance.row
        if row not in self.touched and row not in self.created and not instance.deleted:
            self.pin(instance)
            self.touched[row] = instance

    def delete(self, instance: Instance) -> None:
        """Delete an instance and all that belongs to it."""
        self.created.pop(instance.row, None)
        self.touched.pop(instance.row, None)
        self.pin(instance)
        instance.deleted = True
        self.clear_history(instance)
        self.drop_activities(instance)
        self.drop_timers(instance)
        self.clear_inbox(instance)
        self.rows.append(("delete_instance", (instance.row,)))
        self.removed.append(instance)

    def touch_entity(self, entity: Entity) -> None:
        """Write an entity's row, or delete it if nothing is left of it."""
        if entity.row not in self.entities:
            self.pin(entity)
            self.entities[entity.row] = entity

    def post(self, instance: Instance, event: bytes, kind: MessageKind) -> None:
        """Put an event into an instance's inbox."""
        inbox = instance.inbox
        turn = instance.turn
        seq = inbox[-1].seq + 1 if inbox else (turn.last_seq + 1 if turn else 0)
        message = Message(seq, kind, event)
        inbox.append(message)
        instance.inbox_bytes += len(event)
        self.added.append(message)
        self.rows.append(("insert_inbox", (key(instance.row, seq), int(kind), event)))
        self.pin(instance)
        self.ready[instance.row] = instance

    def take(self, instance: Instance, last_seq: int) -> None:
        """Remove the messages up to ``last_seq`` from the inbox."""
        if last_seq < 0:
            return
        inbox = instance.inbox
        count = 0
        while count < len(inbox) and inbox[count].seq <= last_seq:
            instance.inbox_bytes -= len(inbox[count].event)
            count += 1
        del inbox[:count]
        self.rows.append(("delete_inbox_range", (key(instance.row, 0), key(instance.row, last_seq))))

    def clear_inbox(self, instance: Instance) -> None:
        """Remove all messages."""
        if instance.inbox or instance.turn is not None:
            instance.inbox.clear()
            instance.inbox_bytes = 0
            self.rows.append(("delete_inbox_range", (key(instance.row, 0), key(instance.row, MAX_SEQ))))

    def append_history(self, instance: Instance, chunk: bytes, count: int) -> None:
        """Append encoded events to an instance's history."""
        self.rows.append(("insert_history", (key(instance.row, instance.history_seq), chunk)))
        instance.history_seq += 1
        instance.history_bytes += len(chunk)
        instance.history_events += count
        if instance.chunks is not None:
            instance.chunks.append(chunk)

    def clear_history(self, instance: Instance) -> None:
        """Delete an instance's history."""
        if instance.history_seq:
            self.rows.append(("delete_history_range", (key(instance.row, 0), key(instance.row, MAX_SEQ))))
        instance.history_seq = instance.history_bytes = instance.history_events = 0
        instance.chunks = []

    def drop_activities(self, instance: Instance) -> None:
        """Delete the instance's activities that have no result yet."""
        self.rows.append(("delete_activities_of", (instance.row,)))

    def drop_timers(self, instance: Instance) -> None:
        """Delete the instance's timers."""
        self.rows.append(("delete_timers_of", (instance.row,)))

    def add_activity(self, activity: Activity) -> None:
        """Schedule an activity."""
        self.rows.append(("insert_activity", activity.columns()))
        self.activities.append(activity)

    def add_timer(self, timer: Timer) -> None:
        """Set a timer."""
        self.rows.append(
            (
                "insert_timer",
                (
                    timer.row,
                    timer.hub,
                    timer.fire_at,
                    int(timer.kind),
                    timer.target,
                    timer.target_id,
                    timer.execution_id,
                    timer.payload,
                ),
            )
        )
        self.timers.append(timer)

    def add_operation(self, entity: Entity, op: Operation) -> None:
        """Put an operation into an entity's queue."""
        entity.queue.append(op)
        entity.queue_bytes += len(op.request)
        self.added.append(op)
        self.rows.append(
            (
                "insert_operation",
                (
                    op.row,
                    entity.row,
                    int(op.kind),
                    op.request_id,
                    op.request,
                    op.caller,
                    op.caller_execution,
                    op.position,
                ),
            )
        )
        self.touch_entity(entity)

    def remove_operation(self, entity: Entity, op: Operation) -> None:
        """Take an operation out of an entity's queue."""
        entity.queue.remove(op)
        entity.queue_bytes -= len(op.request)
        self.rows.append(("delete_operation", (op.row,)))
