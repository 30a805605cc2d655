"""Waiting for a condition with a deadline: what tests do instead of sleeping."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")

PATIENCE_S = 60.0
"""A test that waits this long has failed, also on a busy machine."""
_EVERY_S = 0.02


def eventually(
    probe: Callable[[], T],
    what: str = "",
    *,
    timeout_s: float = PATIENCE_S,
    every_s: float = _EVERY_S,
    ignoring: tuple[type[Exception], ...] = (),
) -> T:
    """Call `probe` until it returns something true, and return that. Blocks.

    Args:
        probe: What is asked.
        what: What is waited for, in the failure's words.
        timeout_s: The deadline.
        every_s: Between two questions.
        ignoring: Errors of `probe` that mean "not yet".

    Raises:
        AssertionError: The deadline is over.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        value: T | None = None
        with contextlib.suppress(*ignoring):
            value = probe()
        if value:
            return value
        _check(deadline, timeout_s, what, probe, value)
        time.sleep(every_s)


async def eventually_async(
    probe: Callable[[], T | Awaitable[T]],
    what: str = "",
    *,
    timeout_s: float = PATIENCE_S,
    every_s: float = _EVERY_S,
) -> T:
    """As `eventually`, on the event loop; `probe` may be a coroutine function."""
    deadline = time.monotonic() + timeout_s
    while True:
        answer = probe()
        value: T = await answer if inspect.isawaitable(answer) else answer  # type: ignore[assignment]
        if value:
            return value
        _check(deadline, timeout_s, what, probe, value)
        await asyncio.sleep(every_s)


def _check(deadline: float, timeout_s: float, what: str, probe: object, value: object) -> None:
    if time.monotonic() > deadline:
        raise AssertionError(f"not within {timeout_s:g} s: {what or repr(probe)}; last value {value!r}")
