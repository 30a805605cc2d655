"""Times in the state of agents, read in a fiftieth of the SDK's time.

The SDK reads each time stamp of an agent's conversation, in every turn, by `dateutil`'s parser, which guesses
formats and takes longer than all else that is read. What it has written itself is ISO 8601.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime
from typing import Any, Final

from agent_framework_durabletask import (
    _durable_agent_state as agent_state,  # pyright: ignore[reportPrivateUsage]
)

_ISO: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)?", re.ASCII)
by_sdk: Final[Callable[[Any], datetime]] = agent_state._parse_created_at  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
"""How the SDK reads a time."""


def install_fast_times() -> None:
    """Have ISO 8601 read by the standard library; anything else as before. Idempotent."""
    setattr(agent_state, "_parse_created_at", read_time)  # noqa: B010 — no public name


def read_time(value: Any) -> datetime:
    """A time of an agent's state."""
    if isinstance(value, str) and _ISO.fullmatch(value):
        try:
            return datetime.fromisoformat(value)
        except ValueError:
            pass  # the 30th of February, say: the SDK tells what it makes of that
    return by_sdk(value)
