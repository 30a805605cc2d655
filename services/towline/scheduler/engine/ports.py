"""What the engine needs from around it."""

from dataclasses import dataclass
from typing import Protocol

from towline.scheduler.engine.errors import TooLargeError
from towline.scheduler.engine.model import Activity, Entity, Instance


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds past which the engine fails things instead of letting them grow."""

    work_item_bytes: int = 4_194_304 - 65_536
    """Largest work item: the workers' receive limit less a margin. A larger one breaks their stream."""
    payload_bytes: int = 3_145_728
    """Largest single input, result or event."""
    history_events: int = 10_000
    """Most events in one generation of an instance."""
    history_bytes: int = 64 * 1024 * 1024
    """Largest history of a generation, of which a worker fetches what does not fit a work item."""
    turn_events: int = 1_000
    """Most new events in one turn."""
    inbox_messages: int = 100_000
    """Most messages that wait for an instance: what is sent to it beyond that is refused, or fails it."""
    inbox_bytes: int = 64 * 1024 * 1024
    """The same, in bytes: all that waits is in memory when some of it is handed out."""
    batch_operations: int = 100
    """Most operations in one entity batch."""
    batch_bytes: int = 1_048_576
    """Size after which an entity batch takes no further operation."""
    losses: int = 10
    """Deliveries lost with their worker before a work item counts as poison."""

    def check_room(self, what: str, count: int, size: int) -> None:
        """Let something more wait in an inbox or queue.

        Raises:
            TooLargeError: Too much waits in it.
        """
        # Numbers of messages have 20 bits: the one after the last would be in the inbox of another instance.
        # Results, and the resume of what was suspended, are few enough for what is left of them.
        if count >= self.inbox_messages:
            raise TooLargeError(
                f"the {what} is too large: {count} messages wait in it, the limit is {self.inbox_messages}"
            )
        if size >= self.inbox_bytes:
            raise TooLargeError(
                f"the {what} is too large: {size} bytes wait in it, the limit is {self.inbox_bytes}"
            )

    @property
    def suspicious_losses(self) -> int:
        """Losses from which on a work item may be what ends its workers."""
        return max(1, self.losses // 2)


class World(Protocol):
    """Access to everything that is not the state at hand. Answers include what is not committed yet."""

    limits: Limits

    def instance(self, hub: int, instance_id: str) -> Instance | None:
        """The live or finished instance of that id."""
        ...

    def adopt(self, instance: Instance) -> None:
        """Make a new instance known under its id."""
        ...

    def children(self, parent: Instance) -> list[Instance]:
        """Instances that name ``parent`` as their parent."""
        ...

    def activities(self, instance: Instance) -> list[Activity]:
        """Activities of the instance without a result."""
        ...

    def open_activity(self, activity: Activity) -> None:
        """Make a new activity known."""
        ...

    def close_activity(self, activity: Activity) -> None:
        """Forget an activity that has its result or is not wanted any more."""
        ...

    def entity(self, hub: int, entity_id: str) -> Entity:
        """The entity of that id; a new one without a row if there is none."""
        ...

    def next_row(self) -> int:
        """A number never used before, in this or any earlier process."""
        ...

    def new_id(self) -> str:
        """A random id: execution ids, instance ids, request ids."""
        ...

    def load_input(self, instance: Instance) -> str | None:
        """Input of the current generation."""
        ...

    def load_history(self, instance: Instance) -> list[bytes]:
        """History chunks of the current generation, oldest first."""
        ...
