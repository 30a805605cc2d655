"""Redis keys of the relay. Those shared with the worker are in `towline.contracts.stream`.

Keys of one run are tagged with its id and those of the index with one tag of their own, so that each
script stays within one slot of a cluster.
"""

from __future__ import annotations

from towline.contracts.stream import DEFAULT_KEY_PREFIX, run_prefix, stream_key, turns_key, wake_channel


class Keys:
    """All keys of one stack.

    Args:
        prefix: What they begin with, `RedisSettings.key_prefix`.
    """

    def __init__(self, prefix: str = DEFAULT_KEY_PREFIX) -> None:
        self._prefix = prefix
        self._index = index = f"{prefix}{{runs}}:"
        self.all_runs = f"{index}all"
        """Sorted set: run id by time of its first event, in ms."""
        self.open_approvals = f"{index}approvals"
        """Sorted set: "<run id> <approval id>" by time of the request, in ms."""
        self.events = f"{index}events"
        """Stream: every lifecycle event and outcome of all runs."""
        self.events_channel = f"{index}wake"
        self.offsets = f"{index}offsets"
        """Hash: "<topic>:<partition>" → next offset to apply. Kept with the data that it speaks of: when
        Redis loses data, it loses the offsets with it, and what was lost is read from Kafka again."""
        self._marks = f"{index}mark:"
        self.listened = f"{index}listened"
        """There while somebody listens to any of the relays: see `Audience`."""
        self.facets = f"{index}facets"
        """Set: names of the sorted sets by status, type and tag, so that they can be pruned."""
        self.idle_channel = f"{prefix}relay:idle"
        """Never published to: a pub/sub connection is in use from its first subscription on."""

    def facet(self, facet: str, value: str) -> str:
        """Sorted set of the runs with this status, type or tag (`value` of a tag: ``name=value``)."""
        return f"{self._index}{facet}:{value}"

    def temporary(self, name: str) -> str:
        """A set that lives for seconds."""
        return f"{self._index}temporary:{name}"

    def mark(self, member: str) -> str:
        """Number: how often this member of the consumer group has applied anything."""
        return f"{self._marks}{member}"

    def claim(self, event_id: str) -> str:
        """Text: digest of the request that an idempotency key was used for."""
        return f"{run_prefix(event_id, self._prefix)}claim"

    def stream(self, run_id: str) -> str:
        """See `towline.contracts.stream.stream_key`."""
        return stream_key(run_id, self._prefix)

    def turns(self, run_id: str) -> str:
        """See `towline.contracts.stream.turns_key`."""
        return turns_key(run_id, self._prefix)

    def wake(self, run_id: str) -> str:
        """See `towline.contracts.stream.wake_channel`."""
        return wake_channel(run_id, self._prefix)

    def run(self, run_id: str) -> str:
        """Hash: what is known of the run; ``progress``: highest number of its progress that was applied."""
        return f"{run_prefix(run_id, self._prefix)}run"

    def approvals(self, run_id: str) -> str:
        """Hash: ``requested:<id>``, ``status:<id>``, ``resolved:<id>``."""
        return f"{run_prefix(run_id, self._prefix)}approvals"

    def written(self, run_id: str) -> str:
        """Set: ids of the events that were applied to the run, but for its progress: see `run`."""
        return f"{run_prefix(run_id, self._prefix)}written"
