"""From rows of the file to state of the engine."""

from __future__ import annotations

import json
import sqlite3
from typing import Any

from durabletask.internal import orchestrator_service_pb2 as pb

from towline.scheduler.engine.changes import MAX_SEQ, key
from towline.scheduler.engine.model import (
    TERMINAL,
    Activity,
    Entity,
    Instance,
    Message,
    MessageKind,
    Operation,
    OperationKind,
    Parent,
    Timer,
    TimerKind,
)
from towline.scheduler.engine.wire import parse_history
from towline.scheduler.store.statements import SQL


def instance_of(row: tuple[Any, ...]) -> Instance:
    """An instance without its inbox and history."""
    return Instance(
        row=row[0],
        hub=row[1],
        id=row[2],
        name=row[3],
        version=row[4],
        execution_id=row[5],
        status=row[6],
        created=row[7],
        updated=row[8],
        completed=row[9],
        start_at=row[10],
        custom_status=row[11],
        custom_inherited=bool(row[12]),
        output=row[13],
        failure=row[14],
        parent=None if row[15] is None else Parent(row[15], row[16], row[17], row[18]),
        start=row[19],
        trace=row[20],
        turn_at=row[21],
        history_events=row[22],
        history_bytes=row[23],
        history_seq=row[24],
        locks=json.loads(row[25]) if row[25] else {},
        has_timers=row[6] not in TERMINAL,
    )


def activity_of(row: tuple[Any, ...]) -> Activity:
    """An activity."""
    return Activity(
        row=row[0],
        hub=row[1],
        instance_row=row[2],
        instance_id=row[3],
        execution_id=row[4],
        task_id=row[5],
        name=row[6],
        version=row[7],
        request=row[8],
        attempt=row[9],
    )


def timer_of(row: tuple[Any, ...]) -> Timer:
    """A timer."""
    return Timer(row[0], row[1], row[2], TimerKind(row[3]), row[4], row[5], row[6], row[7])


class Loader:
    """Reads single instances and entities, on a connection that sees what is committed."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._execute = connection.execute

    def instance(self, hub: int, instance_id: str) -> Instance | None:
        """An instance with its inbox, if it has not ended."""
        row = self._execute(SQL["instance_by_id"], (hub, instance_id)).fetchone()
        return None if row is None else self._with_inbox(instance_of(row))

    def _with_inbox(self, instance: Instance) -> Instance:
        if not instance.terminal:
            messages = self._execute(SQL["inbox"], (key(instance.row, 0), key(instance.row, MAX_SEQ)))
            instance.inbox = [
                Message(seq & MAX_SEQ, MessageKind(kind), event, durable=True)
                for seq, kind, event in messages
            ]
            instance.inbox_bytes = sum(len(message.event) for message in instance.inbox)
        return instance

    def children(self, parent: Instance) -> list[Instance]:
        """Instances that name ``parent`` as theirs."""
        return [
            self._with_inbox(instance_of(row))
            for row in self._execute(SQL["children"], (parent.row, parent.hub)).fetchall()
        ]

    def history(self, instance: Instance) -> list[bytes]:
        """History chunks, oldest first."""
        rows = self._execute(SQL["history"], (key(instance.row, 0), key(instance.row, MAX_SEQ)))
        return [chunk for (chunk,) in rows]

    def input(self, instance: Instance) -> str | None:
        """Input of the current generation, from ``executionStarted`` in the history or the inbox."""
        if instance.history_seq:
            row = self._execute(SQL["first_history"], (key(instance.row, 0),)).fetchone()
            events = parse_history(row[0]) if row else []
        else:
            rows = self._execute(SQL["inbox"], (key(instance.row, 0), key(instance.row, 0)))
            events = [pb.HistoryEvent.FromString(event) for _, _, event in rows]
        for event in events:
            if event.HasField("executionStarted"):
                started = event.executionStarted
                return started.input.value if started.HasField("input") else None
        return None

    def activity_request(self, row: int) -> bytes | None:
        """Serialized request of an activity."""
        found = self._execute(SQL["activity"], (row,)).fetchone()
        return None if found is None else found[8]

    def activities(self, instance: Instance) -> list[Activity]:
        """Activities without a result."""
        return [activity_of(row) for row in self._execute(SQL["activities_of"], (instance.row,)).fetchall()]

    def entity(self, hub: int, entity_id: str) -> Entity | None:
        """An entity with its queue."""
        row = self._execute(SQL["entity_by_id"], (hub, entity_id)).fetchone()
        if row is None:
            return None
        entity = Entity(
            row=row[0],
            hub=row[1],
            id=row[2],
            state=row[3],
            modified=row[4],
            lock_section=row[5],
            lock_holder=row[6],
            lock_execution=row[7],
            turn=row[8],
            attempt=row[9],
            stored=True,
        )
        operations = self._execute(SQL["operations"], (entity.row,))
        entity.queue = [
            Operation(
                *(number, OperationKind(kind), request_id, request, caller, execution, position), durable=True
            )
            for number, kind, request_id, request, caller, execution, position in operations
        ]
        entity.queue_bytes = sum(len(op.request) for op in entity.queue)
        return entity

    def entity_id(self, row: int) -> tuple[int, str] | None:
        """Hub and id of an entity by its row number."""
        return self._execute(SQL["entity_id"], (row,)).fetchone()

    def signal_seen(self, hub: int, request_id: str) -> bool:
        """Whether a client's signal with that id was accepted before."""
        return self._execute(SQL["signal_seen"], (hub, request_id)).fetchone() is not None

    def meta(self, name: str) -> str | None:
        """A value of the ``meta`` table."""
        row = self._execute(SQL["get_meta"], (name,)).fetchone()
        return None if row is None else row[0]
