"""Calls from one event loop into another, many of which share one wake-up.

`asyncio.run_coroutine_threadsafe` makes a thread-safe future for each call, chains two futures to it and
wakes the other loop by a system call each way. Here what is handed over while the other loop is busy waits
in a queue, and only the first of them wakes it.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

T = TypeVar("T")
_log = logging.getLogger(__name__)


class Inbox:
    """Runs what any thread hands over on its loop, in order.

    Args:
        loop: Where the calls are made.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._calls: deque[Callable[[], object]] = deque()
        self._awake = False

    def post(self, call: Callable[[], object]) -> None:
        """Have `call` made.

        Raises:
            RuntimeError: The loop is closed.
        """
        self._calls.append(call)
        if not self._awake:
            self._awake = True
            self._loop.call_soon_threadsafe(self._run)

    def _run(self) -> None:
        # Before the first look: what is posted from now on either is seen below or wakes the loop again.
        self._awake = False
        for _ in range(len(self._calls)):
            call = self._calls.popleft()
            try:
                call()
            except Exception:  # noqa: BLE001 — the others are to be made all the same
                _log.exception("crossing_call_failed")


class Crossing:
    """From the loop on which it is made to another one.

    Args:
        other: Where coroutines are run.
    """

    def __init__(self, other: asyncio.AbstractEventLoop) -> None:
        self._there = Inbox(other)
        self._here = Inbox(asyncio.get_running_loop())

    async def run(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Await `work()` on the other loop. When this is cancelled, so is the work.

        Raises:
            RuntimeError: The other loop is closed.
            Exception: Whatever the work raises.
        """
        answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        tasks: list[asyncio.Task[T]] = []
        # The inbox makes many calls in one go, each of which brings its own variables.
        context = contextvars.copy_context()

        def begin() -> None:
            if answer.cancelled():
                return
            task = asyncio.get_running_loop().create_task(work(), context=context)
            tasks.append(task)
            task.add_done_callback(ended)

        def ended(task: asyncio.Task[T]) -> None:
            with suppress(RuntimeError):  # the loop that asked is closed: nobody is left to be told
                self._here.post(lambda: _settle(answer, task))

        self._there.post(begin)
        try:
            return await answer
        except asyncio.CancelledError:
            self._there.post(lambda: [task.cancel() for task in tasks])
            raise


def _settle(answer: asyncio.Future[T], done: asyncio.Task[T]) -> None:
    if answer.done():
        if not done.cancelled():
            done.exception()
    elif done.cancelled():
        answer.cancel()
    elif (error := done.exception()) is not None:
        answer.set_exception(error)
    else:
        answer.set_result(done.result())
