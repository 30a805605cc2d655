"""The event loop of a role's process, and how often Python looks for garbage there."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

T = TypeVar("T")

_GC_THRESHOLDS: Final = (250_000, 20, 20)
"""Python's own, 700, 10 and 10, are for small programs: a thousand runs in hand are a hundred thousand living
objects, all of which are looked through again and again. The turns that a worker has in hand are up to
45,000, a thousand runs kept between theirs 170,000 more: the coming and going of so many begins no search.
Measured in docs/decisions/0012-freed-at-once.md."""


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run a role on uvloop where there is one. What is loaded by now is never looked through for garbage."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_GC_THRESHOLDS)
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(main)


def _loop_factory() -> Any:
    try:
        from uvloop import new_event_loop
    except ModuleNotFoundError:  # not made for Windows
        return asyncio.new_event_loop
    return new_event_loop
