"""Several worker processes under one: `towline worker --processes N`.

One Python process uses one core. The scheduler spreads work over all streams, so more processes are all that
more cores need. The parent hosts nothing: it starts the children, starts one again that died, tells all to
stop when it is told to, and answers for them on its HTTP address. Child n serves its own health and metrics
on the port n above that. A child whose parent has gone stops too: it holds the other end of a pipe.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

_log = logging.getLogger(__name__)

UNUSABLE: Final = 2
"""Exit code of a worker that can't host what it was given: starting it again would not help."""
_PROBE_S: Final = 1.0
_STOP_MARGIN_S: Final = 5.0
_LASTING_S: Final = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to run, how often, and for how long it may take to stop."""

    command: Callable[[int], Sequence[str]]
    """Command line of child n, from 1."""
    environment: Callable[[int], dict[str, str]]
    """Its whole environment."""
    ready_urls: Sequence[str]
    """Where each child says whether it is ready."""
    stop_timeout_s: float
    restart_after_s: tuple[float, float] = (0.5, 10.0)
    """Wait before a child that died is started again: at first, doubled each time up to the second."""

    @property
    def count(self) -> int:
        """How many children."""
        return len(self.ready_urls)


@dataclass(slots=True)
class Supervisor:
    """Runs the children until stopped.

    Args:
        plan: The children.
    """

    plan: Plan
    _children: dict[int, asyncio.subprocess.Process] = field(
        default_factory=dict[int, asyncio.subprocess.Process], init=False
    )
    _stopping: asyncio.Event = field(default_factory=asyncio.Event, init=False)
    _unusable: bool = field(default=False, init=False)

    def stop(self) -> None:
        """Tell all children to stop, and end `run`. Idempotent; returns at once."""
        self._stopping.set()
        for child in self._children.values():
            _terminate(child)

    async def run(self) -> bool:
        """Keep the children running.

        Returns:
            False if one of them can't host what it was given when it is first started (it says why on its
            standard error).
        """
        slots = [asyncio.create_task(self._keep(number)) for number in range(1, self.plan.count + 1)]
        try:
            await asyncio.gather(*slots)
        finally:
            self.stop()
            for slot in slots:
                slot.cancel()
            await asyncio.gather(*slots, return_exceptions=True)
            for child in self._children.values():
                child.kill()
        return not self._unusable

    def ready(self) -> str | None:
        """Why runs make no progress in one of the children, or None. Blocks; call it from another thread."""
        return next((problem for url in self.plan.ready_urls if (problem := _problem(url))), None)

    async def _keep(self, number: int) -> None:
        first_s, longest_s = self.plan.restart_after_s
        loop, wait_s = asyncio.get_running_loop(), first_s
        # What could be hosted before can be again: a volume is away, say, or the app's files are replaced.
        first = True
        while not self._stopping.is_set():
            began = loop.time()
            code = await self._run_once(number)
            if self._stopping.is_set():
                return
            if code == UNUSABLE and first:
                self._unusable = True
                self.stop()
                return
            first = first and code is None
            wait_s = first_s if loop.time() - began > _LASTING_S else min(wait_s * 2, longest_s)
            _log.warning("worker_process_died", extra={"number": number, "code": code, "restart_s": wait_s})
            stopping = asyncio.ensure_future(self._stopping.wait())
            await asyncio.wait({stopping}, timeout=wait_s)
            stopping.cancel()

    async def _run_once(self, number: int) -> int | None:
        """The child's exit code; None if it could not be started."""
        try:
            child = self._children[number] = await asyncio.create_subprocess_exec(
                *self.plan.command(number), stdin=asyncio.subprocess.PIPE, env=self.plan.environment(number)
            )
        except OSError as error:
            # There is no memory for another process just now, say. The others are not to stop for it.
            _log.warning("worker_process_not_started", extra={"number": number, "error": str(error)})
            return None
        try:
            if self._stopping.is_set():
                _terminate(child)
            ended = asyncio.ensure_future(child.wait())
            stopping = asyncio.ensure_future(self._stopping.wait())
            await asyncio.wait({ended, stopping}, return_when=asyncio.FIRST_COMPLETED)
            stopping.cancel()
            if not ended.done():
                await asyncio.wait({ended}, timeout=self.plan.stop_timeout_s + _STOP_MARGIN_S)
            if not ended.done():
                _log.warning("worker_process_killed", extra={"number": number})
                child.kill()
            return await ended
        finally:
            self._children.pop(number, None)


def stop_with_parent(stop: asyncio.Event) -> None:
    """Have `stop` set when the process that started this one is gone: standard input comes to its end."""
    loop, standard_input = asyncio.get_running_loop(), sys.stdin.fileno()

    def closed() -> None:
        if not os.read(standard_input, 1):
            loop.remove_reader(standard_input)
            stop.set()

    loop.add_reader(standard_input, closed)


def _terminate(child: asyncio.subprocess.Process) -> None:
    if child.returncode is None:
        child.terminate()


def _problem(url: str) -> str | None:
    try:
        with urllib.request.urlopen(url, timeout=_PROBE_S):  # noqa: S310 — our own address
            return None
    except urllib.error.HTTPError as error:
        return f"{url}: {error.read(500).decode('utf-8', 'replace').strip()}"
    except OSError as error:
        return f"{url}: {error}"
