"""The run's token stream in Redis, as the worker writes and the relay reads it (docs/streams.md)."""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

StreamEntryType: TypeAlias = Literal[
    "token", "message", "tool_call", "status", "approval", "reset", "end", "error"
]
"""Kinds of entries; sent over SSE as ``event:``."""

TERMINAL_ENTRY_TYPES: Final[frozenset[str]] = frozenset({"end", "error"})

TYPE_FIELD: Final = "type"
DATA_FIELD: Final = "data"
"""Fields of a stream entry: `type` and `data` (JSON)."""

DEFAULT_KEY_PREFIX: Final = "towline:"


def run_prefix(run_id: str, prefix: str = DEFAULT_KEY_PREFIX) -> str:
    """What all keys of one run begin with; hash-tagged, so that they share a cluster slot.

    Args:
        run_id: The run.
        prefix: Of all keys of the stack, `RedisSettings.key_prefix`.
    """
    return f"{prefix}{{{run_id}}}:"


def stream_key(run_id: str, prefix: str = DEFAULT_KEY_PREFIX) -> str:
    """Redis stream of one run."""
    return f"{run_prefix(run_id, prefix)}stream"


def turns_key(run_id: str, prefix: str = DEFAULT_KEY_PREFIX) -> str:
    """Redis hash of one run, for fencing.

    ``turn:{turn}`` → ``"{attempt} {owner} {open|closed}"``; ``writer:{name}`` → number of its last batch, so
    that a repeat is known; ``ended``, once the stream is over.
    """
    return f"{run_prefix(run_id, prefix)}turns"


def wake_channel(run_id: str, prefix: str = DEFAULT_KEY_PREFIX) -> str:
    """Redis channel that is published to after entries were added to the run's stream.

    A message is lines: the id of the last entry before them (``0-0``: none), then id, type and data of each.
    If they are long, it is the id of the newest entry alone. Both say: there is more to read.
    """
    return f"{run_prefix(run_id, prefix)}wake"
