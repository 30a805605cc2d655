"""Redis keys that only the relay writes. Those shared with the worker are in `towline.contracts.stream`.

Keys of one run are tagged with its id and those of the index with one tag of their own, so that each
script stays within one slot of a cluster.
"""

from __future__ import annotations

from typing import Final

INDEX_PREFIX: Final = "towline:{runs}:"
ALL_RUNS_KEY: Final = f"{INDEX_PREFIX}all"
"""Sorted set: run id by time of its first event, in ms."""
OPEN_APPROVALS_KEY: Final = f"{INDEX_PREFIX}approvals"
"""Sorted set: "<run id> <approval id>" by time of the request, in ms."""
EVENTS_KEY: Final = f"{INDEX_PREFIX}events"
"""Stream: every lifecycle event and outcome of all runs."""
EVENTS_CHANNEL: Final = f"{INDEX_PREFIX}wake"
OFFSETS_KEY: Final = f"{INDEX_PREFIX}offsets"
"""Hash: "<topic>:<partition>" → next offset to apply. Kept with the data that it speaks of: when Redis loses
data, it loses the offsets with it, and what was lost is read from Kafka again."""
FACETS_KEY: Final = f"{INDEX_PREFIX}facets"
"""Set: names of the sorted sets by status, type and tag, so that they can be pruned."""


def facet_key(facet: str, value: str) -> str:
    """Sorted set of the runs with this status, type or tag (`value` of a tag: ``name=value``)."""
    return f"{INDEX_PREFIX}{facet}:{value}"


def run_key(run_id: str) -> str:
    """Hash: what is known of the run."""
    return f"towline:{{{run_id}}}:run"


def approvals_key(run_id: str) -> str:
    """Hash: ``requested:<id>``, ``status:<id>``, ``resolved:<id>``."""
    return f"towline:{{{run_id}}}:approvals"


def written_key(run_id: str) -> str:
    """Set: ids of the events that were applied to the run."""
    return f"towline:{{{run_id}}}:written"
