"""Agent calls that are tried again: Durable Task retries activities and children, but no entities."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

from durabletask import task


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentRetry:
    """When an agent's turn is tried again.

    Attributes:
        attempts: Tries in all, the first one included.
        first_delay: Wait before the second try; each further one is `backoff` times as long.
        backoff: Factor between two waits.
        longest_delay: No wait is longer.
    """

    attempts: int = 3
    first_delay: timedelta = timedelta(seconds=1)
    backoff: float = 2.0
    longest_delay: timedelta = timedelta(minutes=1)

    def __post_init__(self) -> None:
        if self.attempts < 1 or self.backoff < 1:
            raise ValueError("AgentRetry: attempts and backoff must be at least 1")

    def delay(self, failures: int, seed: str) -> timedelta:
        """The wait after so many failures, spread by up to a quarter; the same in every replay."""
        longest_s = self.longest_delay.total_seconds()
        try:
            seconds = self.first_delay.total_seconds() * self.backoff ** (failures - 1)
        except OverflowError:  # after a thousand failures, say
            seconds = longest_s
        spread = 1 + random.Random(f"{seed}/{failures}").random() / 4  # noqa: S311 — no secret
        return timedelta(seconds=min(seconds * spread, longest_s))


class RetriedTask(task.CompletableTask[Any]):
    """Completes with the first success of a call, or fails with its last failure."""

    failed_attempt: task.Task[Any] | None = None
    """The attempt that it failed with."""


@dataclass(slots=True)
class _Call:
    outer: RetriedTask
    start: Callable[[], task.Task[Any]]
    policy: AgentRetry
    turn: str
    attempt: task.Task[Any]
    failures: int = 0
    timer: task.TimerTask | None = field(default=None)


class Retries:
    """All calls of one run that are tried again, moved on by the drive loop."""

    def __init__(self) -> None:
        self._calls: list[_Call] = []

    def call(self, start: Callable[[], task.Task[Any]], policy: AgentRetry, turn: str) -> RetriedTask:
        """Start a call.

        Args:
            start: Makes one attempt; called again for each further one.
            policy: When there is a further one.
            turn: The call's number in the run.
        """
        made = _Call(RetriedTask(), start, policy, turn, start())
        self._calls.append(made)
        return made.outer

    def tasks(self) -> list[task.Task[Any]]:
        """What is to be waited for beside what the run waits for."""
        return [call.timer or call.attempt for call in self._calls]

    def give_up(self) -> None:
        """The run is cancelled: what it has called so far is not tried again."""
        for call in self._calls:
            call.policy = replace(call.policy, attempts=1)
            if call.timer is not None:
                call.timer.cancel()
                call.timer = None  # what was to be tried again has failed

    def settle(self, create_timer: Callable[[timedelta], task.TimerTask]) -> None:
        """Move all calls on; `create_timer` makes the waits between two attempts."""
        for call in list(self._calls):
            self._settle(call, create_timer)

    def _settle(self, call: _Call, create_timer: Callable[[timedelta], task.TimerTask]) -> None:
        if call.timer is not None:
            if not call.timer.is_complete:
                return
            call.timer = None
            call.attempt = call.start()
        if not call.attempt.is_complete:
            return
        if call.attempt.is_failed:
            call.failures += 1
            if call.failures < call.policy.attempts:
                call.timer = create_timer(call.policy.delay(call.failures, call.turn))
                return
        self._calls.remove(call)
        if call.attempt.is_failed:
            error = call.attempt.get_exception()
            call.outer.failed_attempt = call.attempt
            call.outer.fail(str(error), error)
        else:
            call.outer.complete(call.attempt.get_result())
