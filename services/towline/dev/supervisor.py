"""Keeps a stack up: starts its parts in order, mends those that die, stops all of them at the end."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeAlias, TypeVar

from towline.dev.errors import DevError, PartFailedError
from towline.dev.lifecycle import Action, Life, Phase, Policy, Seen, step
from towline.dev.part import Part
from towline.dev.stack import Stack

TICK_S: Final = 0.03
USAGE_STATUS: Final = 2
"""Exit status of a command whose command line or settings are wrong."""
_PROBE_EVERY_S: Final = 0.05

_T = TypeVar("_T")
Say: TypeAlias = Callable[[str], None]


@dataclass(slots=True)
class _Supervised:
    part: Part
    life: Life = field(default_factory=Life)
    prepared: bool = False
    ready: bool = False
    """The probe succeeded since the last start."""
    problem: str | None = None
    """Why the last start made no process."""
    probe: asyncio.Task[None] | None = None


class Supervisor:
    """Runs one stack on one event loop."""

    def __init__(
        self, stack: Stack, *, say: Say, on_ready: Callable[[], None], policy: Policy | None = None
    ) -> None:
        """Make it.

        Args:
            stack: Not started yet.
            say: Takes one line for each change of state.
            on_ready: Called once, when every part is ready for the first time.
            policy: Bounds; the parts' own readiness timeouts go before its.
        """
        self._stack = stack
        self._say = say
        self._on_ready = on_ready
        self._policy = policy or Policy()
        self._infrastructure = [_Supervised(part) for part in stack.infrastructure]
        self._roles = [_Supervised(part) for part in stack.roles]
        self._kafka_ready = asyncio.Event()
        if all(one.part.name != "kafka" for one in self._infrastructure):
            self._kafka_ready.set()
        self._topics_exist = False
        self._stopping = False
        self._announced = False
        self._failure: Exception | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        # Not the loop's own: its end would wait for a download that nobody wants any more.
        self._threads = ThreadPoolExecutor(max_workers=2 * len(self._all), thread_name_prefix="towline-dev")

    @property
    def _all(self) -> list[_Supervised]:
        return [*self._infrastructure, *self._roles]

    def stop(self) -> None:
        """Begin to stop. Idempotent."""
        self._stopping = True

    def stop_on_signals(self) -> None:
        """Stop on Ctrl-C, SIGTERM and a closed terminal; the second one kills. From the running loop."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._signalled)

    def _signalled(self) -> None:
        if self._stopping:
            for one in self._all:
                one.part.kill_now()
            return
        self._say("stopping (once more: kill)")
        self.stop()

    async def run(self) -> None:
        """Until `stop`, or until a part cannot be started. Everything is stopped when it returns.

        Raises:
            DevError: A part could not be started; the message names the fix.
            TowlineError: The topics could not be created.
            Exception: Either failed for a reason that nobody foresaw.
        """
        try:
            for one in self._all:
                self._spawn_task(self._prepare(one), f"prepare-{one.part.name}")
            self._spawn_task(self._create_topics(), "topics")
            while not all(one.life.is_over for one in self._all):
                self._tick()
                await asyncio.sleep(TICK_S)
        finally:
            self._threads.shutdown(wait=False, cancel_futures=True)
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            for one in self._all:
                one.part.kill()
        if self._failure is not None:
            raise self._failure

    def _tick(self) -> None:
        now = time.monotonic()
        infrastructure_ready = all(one.life.phase is Phase.READY for one in self._infrastructure)
        roles_over = all(one.life.is_over for one in self._roles)
        for one in self._infrastructure:
            # Stopped last: the roles still have things to say while they drain.
            self._advance(one, now, may_start=True, wanted=not (self._stopping and roles_over))
        for one in self._roles:
            may_start = self._topics_exist and infrastructure_ready
            self._advance(one, now, may_start=may_start, wanted=not self._stopping)
        everything_ready = self._topics_exist and all(one.life.phase is Phase.READY for one in self._all)
        if not self._announced and everything_ready:
            self._announced = True
            self._on_ready()

    def _advance(self, one: _Supervised, now: float, *, may_start: bool, wanted: bool) -> None:
        seen = Seen(
            wanted=wanted,
            may_start=may_start and one.prepared,
            ended=one.problem is not None or not one.part.is_running,
            refuses=one.part.exit_status() == USAGE_STATUS,
            ready=one.ready,
        )
        before = one.life
        policy = replace(self._policy, ready_timeout_s=one.part.ready_timeout_s)
        one.life, actions = step(before, seen, now, policy)
        if one.life.phase is not before.phase:
            self._tell(one, before, policy)
        for action in actions:
            self._act(one, action)
        if one.life.phase is Phase.STARTING and one.probe is None:
            one.probe = self._spawn_task(self._probe_until_ready(one), f"probe-{one.part.name}")

    def _act(self, one: _Supervised, action: Action) -> None:
        if action == "terminate":
            one.part.terminate()
        elif action == "kill":
            self._say(f"{one.part.name} takes too long: killed")
            one.part.kill_now()
        else:
            one.ready, one.problem = False, None
            try:
                one.part.spawn()
            except (DevError, OSError) as error:  # the latter: a full disk, no process or file to be had
                one.problem = f"{one.part.name}: {error}" if isinstance(error, OSError) else str(error)
                self._say(one.problem)

    def _tell(self, one: _Supervised, before: Life, policy: Policy) -> None:
        name, now, status = one.part.name, one.life, one.part.exit_status()
        if now.phase is Phase.READY:
            self._say(f"{name} is ready (pid {one.part.pid}, {now.since - before.since:.1f} s)")
            if name == "kafka":
                self._kafka_ready.set()
        elif now.phase is Phase.BACKOFF:
            what = "could not be started" if one.problem is not None else f"ended with status {status}"
            self._say(f"{name} {what}: started again in {policy.backoff_s(now.failures):g} s")
        elif now.phase is Phase.FAILED:
            if one.problem is not None:
                self._fail(DevError(one.problem))
                return
            times = "once" if now.failures == 1 else f"{now.failures} times"
            what = f"ended {times} before it was ready, last with status {status}"
            self._fail(PartFailedError(name, what, one.part.last_lines))

    async def _probe_until_ready(self, one: _Supervised) -> None:
        try:
            while one.life.phase is Phase.STARTING and not one.ready:
                pid = one.part.pid if one.part.is_running else None
                served = await self._in_thread(one.part.probe)
                # It may have been started anew while the probe was under way.
                one.ready = served and pid is not None and one.part.is_running and one.part.pid == pid
                await asyncio.sleep(_PROBE_EVERY_S)
        finally:
            one.probe = None

    async def _prepare(self, one: _Supervised) -> None:
        try:
            await self._in_thread(one.part.prepare)
        except Exception as error:  # noqa: BLE001 - the root of a task: nothing else would tell of it
            self._fail(error)
        else:
            one.prepared = True

    async def _create_topics(self) -> None:
        await self._kafka_ready.wait()
        try:
            await self._stack.create_topics()
        except Exception as error:  # noqa: BLE001 - as above
            self._fail(error)
        else:
            self._topics_exist = True

    def _fail(self, error: Exception) -> None:
        if self._failure is None and not self._stopping:
            self._failure = error
        self._stopping = True

    async def _in_thread(self, call: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)

    def _spawn_task(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
