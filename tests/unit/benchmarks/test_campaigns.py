"""What a benchmark starts, it stops."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading

import pytest
from benchmarks.end_to_end.campaigns import up


class _Slow:
    """Takes its time to start its process."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.go_on = threading.Event()
        self.child: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.begun.set()
        assert self.go_on.wait(10)
        self.child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)

    def stop(self) -> None:
        if self.child is not None:
            self.child.kill()
            self.child.communicate()


async def _use(slow: _Slow) -> None:
    async with up(slow):
        pass


async def test_what_is_being_started_when_it_is_broken_off_is_stopped() -> None:
    slow = _Slow()
    using = asyncio.create_task(_use(slow))
    await asyncio.to_thread(slow.begun.wait, 10)
    using.cancel()
    await asyncio.sleep(0)
    slow.go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await using
    assert slow.child is not None
    assert slow.child.poll() is not None


async def test_what_cannot_be_started_is_stopped_all_the_same() -> None:
    slow = _Slow()
    slow.go_on.set()

    def half() -> None:
        _Slow.start(slow)
        raise OSError("no more of it")

    slow.start = half  # type: ignore[method-assign]
    with pytest.raises(OSError, match="no more of it"):
        await _use(slow)
    assert slow.child is not None
    assert slow.child.poll() is not None
