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


def stream_key(run_id: str) -> str:
    """Redis stream of one run; hash-tagged, so that all keys of a run share a cluster slot."""
    return f"towline:{{{run_id}}}:stream"


def turns_key(run_id: str) -> str:
    """Redis hash of one run, for fencing.

    ``turn:{turn}`` → ``"{attempt} {owner} {open|closed}"``; ``writer:{name}`` → number of its last batch, so
    that a repeat is known; ``ended``, once the stream is over.
    """
    return f"towline:{{{run_id}}}:turns"


def wake_channel(run_id: str) -> str:
    """Redis channel that is published to after entries were added to the run's stream."""
    return f"towline:{{{run_id}}}:wake"
