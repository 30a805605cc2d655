"""The event loop: uvloop, which takes about a tenth less CPU for the same calls, or asyncio's own."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any


def run(main: Coroutine[Any, Any, None]) -> None:
    """Run ``main`` on the fastest loop there is."""
    try:
        from uvloop import new_event_loop
    except ModuleNotFoundError:  # not made for Windows
        new_event_loop = asyncio.new_event_loop
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(main)
