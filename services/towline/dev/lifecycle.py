"""The life of one supervised part, as data: what was seen and the time in, a new state and what to do out.

```
WAITING ──may start──▶ STARTING ──ready──▶ READY
   ▲                    │    ▲               │
   │                 ended  time             ended
   │                    ▼    │               │
   │                   BACKOFF ◀─────────────┘
   └ (not wanted: STARTING, READY ──▶ STOPPING ──ended──▶ STOPPED; WAITING, BACKOFF ──▶ STOPPED)
```
A part that was never ready and ended `Policy.first_starts_max` times is FAILED: its command line or
app is wrong, and trying for ever would only hide that; one that says so itself, at once. One that was
ready once is mended for ever.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import Final, Literal, TypeAlias


class Phase(Enum):
    """Where a part is in its life."""

    WAITING = "waiting"
    STARTING = "starting"
    READY = "ready"
    BACKOFF = "backoff"
    STOPPING = "stopping"
    STOPPED = "stopped"
    FAILED = "failed"


Action: TypeAlias = Literal["spawn", "terminate", "kill"]
"""What the driver does to the process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Bounds, in seconds."""

    ready_timeout_s: float = 60.0
    """A start that takes longer is killed and tried again."""
    stop_timeout_s: float = 10.0
    """From SIGTERM to SIGKILL."""
    backoff_first_s: float = 0.1
    backoff_max_s: float = 5.0
    stable_after_s: float = 30.0
    """A part that was ready for so long starts its backoff anew."""
    first_starts_max: int = 3
    """Starts of a part that was never ready yet."""

    def backoff_s(self, failures: int) -> float:
        """Seconds to wait after the `failures`-th failure in a row, from 1: doubled up to the limit."""
        # The exponent is bounded because a float's is.
        return min(self.backoff_first_s * 2.0 ** min(failures - 1, 30), self.backoff_max_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Life:
    """The state of one part."""

    phase: Phase = Phase.WAITING
    since: float = 0.0
    """When the phase began (monotonic seconds)."""
    failures: int = 0
    """Ends in a row without a stable time in between."""
    was_ready: bool = False
    """Whether it ever was."""
    killed: bool = False
    """SIGKILL was sent in this phase."""

    @property
    def is_over(self) -> bool:
        """Whether nothing will happen any more."""
        return self.phase in {Phase.STOPPED, Phase.FAILED}


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What the driver sees at one moment."""

    wanted: bool = True
    """False: it has to stop."""
    may_start: bool = False
    """What it needs is there."""
    ended: bool = False
    """There is no process (STARTING, READY, STOPPING only)."""
    refuses: bool = False
    """It ended with the status that means: the command line is wrong."""
    ready: bool = False
    """Its probe succeeded since the last start."""


Step: TypeAlias = tuple[Life, tuple[Action, ...]]


def step(life: Life, seen: Seen, now: float, policy: Policy) -> Step:
    """The next state and what to do now. Pure; calling it again with nothing new changes nothing."""
    return _HANDLERS[life.phase](life, seen, now, policy)


def _enter(life: Life, phase: Phase, now: float) -> Life:
    return replace(life, phase=phase, since=now, killed=False)


def _waiting(life: Life, seen: Seen, now: float, policy: Policy) -> Step:
    del policy
    if not seen.wanted:
        return _enter(life, Phase.STOPPED, now), ()
    if seen.may_start:
        return _enter(life, Phase.STARTING, now), ("spawn",)
    return life, ()


def _starting(life: Life, seen: Seen, now: float, policy: Policy) -> Step:
    if not seen.wanted or seen.ended:
        return _leave(life, seen, now, policy)
    if seen.ready:
        return replace(_enter(life, Phase.READY, now), was_ready=True), ()
    if now - life.since > policy.ready_timeout_s and not life.killed:
        return replace(life, killed=True), ("kill",)
    return life, ()


def _ready(life: Life, seen: Seen, now: float, policy: Policy) -> Step:
    if life.failures and now - life.since > policy.stable_after_s:
        life = replace(life, failures=0)
    if not seen.wanted or seen.ended:
        return _leave(life, seen, now, policy)
    return life, ()


def _leave(life: Life, seen: Seen, now: float, policy: Policy) -> Step:
    if not seen.wanted:
        return (
            (_enter(life, Phase.STOPPED, now), ())
            if seen.ended
            else (_enter(life, Phase.STOPPING, now), ("terminate",))
        )
    life = replace(life, failures=life.failures + 1)
    hopeless = not life.was_ready and (seen.refuses or life.failures >= policy.first_starts_max)
    return _enter(life, Phase.FAILED if hopeless else Phase.BACKOFF, now), ()


def _backoff(life: Life, seen: Seen, now: float, policy: Policy) -> Step:
    if not seen.wanted:
        return _enter(life, Phase.STOPPED, now), ()
    if now - life.since >= policy.backoff_s(life.failures):
        return _enter(life, Phase.STARTING, now), ("spawn",)
    return life, ()


def _stopping(life: Life, seen: Seen, now: float, policy: Policy) -> Step:
    if seen.ended:
        return _enter(life, Phase.STOPPED, now), ()
    if now - life.since > policy.stop_timeout_s and not life.killed:
        return replace(life, killed=True), ("kill",)
    return life, ()


def _over(life: Life, seen: Seen, now: float, policy: Policy) -> Step:
    del seen, now, policy
    return life, ()


_HANDLERS: Final[Mapping[Phase, Callable[[Life, Seen, float, Policy], Step]]] = {
    Phase.WAITING: _waiting,
    Phase.STARTING: _starting,
    Phase.READY: _ready,
    Phase.BACKOFF: _backoff,
    Phase.STOPPING: _stopping,
    Phase.STOPPED: _over,
    Phase.FAILED: _over,
}
