"""What is in memory: instances and entities at work, a bounded number of others, ready history."""

from __future__ import annotations

import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from towline.scheduler.engine.changes import Changes
from towline.scheduler.engine.model import Activity, Entity, Instance
from towline.scheduler.engine.ports import Limits
from towline.scheduler.store.rows import Loader

_ROW_BLOCK = 1 << 24
"""Row numbers reserved at a time. With 43 bits for a row there is room for half a million restarts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheLimits:
    """How much is kept in memory beyond what is at work."""

    instances: int = 20_000
    entities: int = 10_000
    history_bytes: int = 128 * 1024 * 1024
    """Of histories, messages, inputs and outputs; and as many of entities' states and operations."""


class MemoryWorld:
    """The engine's ``World``: memory first, then the file.

    Anything with uncommitted changes is pinned in memory, so that what is read from the file is never older
    than what the engine has decided.
    """

    def __init__(self, loader: Loader, limits: Limits, cache: CacheLimits) -> None:
        self.limits = limits
        self.changes: Callable[[], Changes] = Changes
        """Gives the open batch."""
        self.batches: Callable[[], Iterable[Changes]] = lambda: (self.changes(),)
        """Gives all that are not committed."""
        self.activity_rows: dict[int, Activity] = {}
        """All activities without a result, by row."""
        self._rows_of: dict[int, set[int]] = {}
        self._entity_ids: dict[int, tuple[int, str]] = {}
        self._loader = loader
        self._cache = cache
        self._instances: OrderedDict[tuple[int, str], Instance] = OrderedDict()
        self._entities: OrderedDict[tuple[int, str], Entity] = OrderedDict()
        self._bytes = 0
        """What the budget counts of instances."""
        self._entity_bytes = 0
        self._next_row = 0
        self._reserved = 0

    # -- the engine's port

    def instance(self, hub: int, instance_id: str) -> Instance | None:
        """See ``World``."""
        key = (hub, instance_id)
        found = self._instances.get(key)
        if found is not None:
            self._instances.move_to_end(key)
            return None if found.deleted else found
        found = self._loader.instance(hub, instance_id)
        if found is not None:
            self._instances[key] = found
            self._account(found)
        return found

    def adopt(self, instance: Instance) -> None:
        """See ``World``."""
        self._instances[instance.hub, instance.id] = instance

    def children(self, parent: Instance) -> list[Instance]:
        """See ``World``."""
        found = {child.row: child for child in self._loader.children(parent)}
        for stored in list(found.values()):
            known = self._instances.get((stored.hub, stored.id))
            if known is None:
                self._instances[stored.hub, stored.id] = stored
                self._account(stored)
            elif known.row == stored.row:
                found[stored.row] = known
            else:
                del found[stored.row]  # replaced by another one in a batch that is not committed
        for changes in self.batches():
            # Created in a batch that is not committed: only in memory.
            found.update(changes.created)
        return [
            child
            for child in found.values()
            if not child.deleted and child.parent and child.parent.row == parent.row
        ]

    def activities(self, instance: Instance) -> list[Activity]:
        """See ``World``."""
        return [self.activity_rows[row] for row in sorted(self._rows_of.get(instance.row, ()))]

    def has_activities(self, instance: Instance) -> bool:
        """Whether activities of an instance have no result yet."""
        return instance.row in self._rows_of

    def open_activity(self, activity: Activity) -> None:
        """See ``World``."""
        self.activity_rows[activity.row] = activity
        self._rows_of.setdefault(activity.instance_row, set()).add(activity.row)

    def close_activity(self, activity: Activity) -> None:
        """See ``World``."""
        if self.activity_rows.pop(activity.row, None) is None:
            return
        rows = self._rows_of[activity.instance_row]
        rows.discard(activity.row)
        if not rows:
            del self._rows_of[activity.instance_row]

    def entity(self, hub: int, entity_id: str) -> Entity:
        """See ``World``."""
        key = (hub, entity_id)
        found = self._entities.get(key)
        if found is not None:
            self._entities.move_to_end(key)
            return found
        found = self._loader.entity(hub, entity_id) or Entity(self.next_row(), hub, entity_id)
        self._entities[key] = found
        self._entity_ids[found.row] = key
        self._account_entity(found)
        return found

    def next_row(self) -> int:
        """See ``World``."""
        if self._next_row >= self._reserved:
            self._reserved = self._next_row + _ROW_BLOCK
            self.changes().rows.append(("set_meta", ("next_row", str(self._reserved))))
        self._next_row += 1
        return self._next_row

    def has_rows(self, changes: Changes) -> bool:
        """Whether all row numbers so far are reserved on disk once batches before ``changes`` are.

        Those that only this batch reserves would be given out again if it never came to be. The first that
        needs any after a start or a failed commit reserves them, so while a disk is full none has.
        """
        return not any(name == "set_meta" for name, _ in changes.rows)

    def new_id(self) -> str:
        """See ``World``."""
        return uuid.uuid4().hex

    def load_input(self, instance: Instance) -> str | None:
        """See ``World``."""
        if not instance.input_known:
            instance.input = self._loader.input(instance)
            instance.input_known = True
            self._account(instance)
        return instance.input

    def load_history(self, instance: Instance) -> list[bytes]:
        """See ``World``."""
        if instance.chunks is None:
            instance.chunks = self._loader.history(instance)
            self._account(instance)
        return instance.chunks

    # -- for the runtime

    def known_instance(self, hub: int, instance_id: str) -> Instance | None:
        """An instance that is in memory, deleted or not."""
        return self._instances.get((hub, instance_id))

    def entity_by_row(self, row: int) -> Entity | None:
        """An entity by its row number, if it has one."""
        entity_id = self._entity_ids.get(row)
        if entity_id is None:
            entity_id = self._loader.entity_id(row)
            if entity_id is None:
                return None
        entity = self.entity(*entity_id)
        return entity if entity.row == row else None

    def activity_request(self, activity: Activity) -> bytes | None:
        """Serialized request of an activity."""
        return (
            activity.request if activity.request is not None else self._loader.activity_request(activity.row)
        )

    def signal_seen(self, hub: int, request_id: str) -> bool:
        """Whether a client's signal was accepted before, by what is committed."""
        return self._loader.signal_seen(hub, request_id)

    def start_rows(self, first: int) -> None:
        """Use no row number up to ``first``."""
        self._next_row = self._reserved = first

    def clear(self) -> None:
        """Forget everything: what is in memory may be newer than what is on disk."""
        self._instances.clear()
        self._entities.clear()
        self._entity_ids.clear()
        self.activity_rows.clear()
        self._rows_of.clear()
        self._bytes = self._entity_bytes = 0

    def forget_hub(self, hub: int) -> None:
        """Forget everything of one hub."""
        for key in [key for key in self._instances if key[0] == hub]:
            instance = self._instances.pop(key)
            instance.deleted = True
            self._account(instance)
        for key in [key for key in self._entities if key[0] == hub]:
            entity = self._entities.pop(key)
            entity.deleted = True
            self._account_entity(entity)
            self._entity_ids.pop(entity.row, None)
        for activity in [activity for activity in self.activity_rows.values() if activity.hub == hub]:
            activity.done = True
            self.close_activity(activity)

    def settle(self, changes: Changes) -> None:
        """A batch is committed: unpin, forget the deleted, keep within the budget."""
        changes.written()
        for state in changes.pinned:
            state.pins -= 1
        for instance in changes.removed:
            if self._instances.get((instance.hub, instance.id)) is instance:
                del self._instances[instance.hub, instance.id]
            self._account(instance)
        for instance in (*changes.created.values(), *changes.ready.values()):
            self._account(instance)
        for instance in changes.touched.values():
            if instance.terminal and instance.pins == 0:
                instance.chunks = None
            self._account(instance)
        for entity in changes.entities.values():
            self._account_entity(entity)
        self.trim()

    def _account(self, instance: Instance) -> None:
        is_kept = self._instances.get((instance.hub, instance.id)) is instance and not instance.deleted
        size = instance.weight if is_kept else 0
        self._bytes += size - instance.accounted
        instance.accounted = size

    def _account_entity(self, entity: Entity) -> None:
        is_kept = self._entities.get((entity.hub, entity.id)) is entity and not entity.deleted
        size = len(entity.state or "") + entity.queue_bytes if is_kept else 0
        self._entity_bytes += size - entity.accounted
        entity.accounted = size

    def trim(self) -> None:
        """Keep within the budget. Not in the midst of an operation, which has read what nothing pins yet."""
        attempts = len(self._instances)
        while attempts and len(self._instances) > self._cache.instances:
            attempts -= 1
            key, instance = self._instances.popitem(last=False)
            if instance.pins or instance.turn is not None:
                self._instances[key] = instance
                continue
            self._account(instance)
        if self._bytes > self._cache.history_bytes:
            self._free(self._cache.history_bytes * 3 // 4)
        attempts = len(self._entities)
        while attempts and (
            len(self._entities) > self._cache.entities or self._entity_bytes > self._cache.history_bytes
        ):
            attempts -= 1
            key, entity = self._entities.popitem(last=False)
            if entity.pins or entity.batch is not None:
                self._entities[key] = entity
            else:
                self._entity_ids.pop(entity.row, None)
                self._account_entity(entity)

    def _free(self, goal_bytes: int) -> None:
        for key, instance in list(self._instances.items()):
            if instance.pins or not instance.accounted:
                continue
            if instance.turn is None:
                del self._instances[key]
            else:
                instance.chunks = None
            self._account(instance)
            if self._bytes <= goal_bytes:
                return

    def sizes(self) -> dict[str, int]:
        """What is in memory, for metrics."""
        return {
            "instances": len(self._instances),
            "entities": len(self._entities),
            "history_bytes": self._bytes,
            "activities": len(self.activity_rows),
        }
