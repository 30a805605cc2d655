"""Keeps orchestrations between their turns, so that a turn costs what is new in it and not the whole history.

Without it every turn replays the run from its beginning: a run of n steps costs n² of them. What is kept is
never needed: whenever it does not fit the history that the scheduler sends, the turn is a full replay.

Replay is also what finds code that is not deterministic, so some turns of every orchestrator are replayed
all the same: the first ones in a process, where a developer sees it, and then one in `replay_every`.
"""

from __future__ import annotations

import contextvars
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from towline.worker import sdk
from towline.worker.errors import HistoryMissingError
from towline.worker.payloads import LOST
from towline.worker.turn import Turn, active

if TYPE_CHECKING:
    from towline.worker.worker import TowlineWorker

Replay = Literal["sampled", "always", "never"]
_FIRST_REPLAYED: Final = 16
"""Turns of each orchestrator that are replayed in each process before any is gone on with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeeperOptions:
    """How much is kept, and how often it is replayed nevertheless."""

    replay: Replay = "sampled"
    """always: nothing is kept. never: only where it has to be."""
    max_count: int = 4_000
    """Orchestrations kept at once; the one that was used least recently goes first."""
    max_bytes: int = 64 * 1024 * 1024
    """Of the histories of those kept, all together; the newest is kept however large."""
    max_age_s: float = 60.0
    """After so long without a turn an orchestration is let go."""
    replay_every: int = 64
    """One in so many turns that could go on is replayed, to find code that is not deterministic."""


@dataclass(slots=True)
class _Kept:
    orchestration: sdk.Orchestration
    since: float


class Keeper:
    """Carries out orchestration turns, from what was kept where that is sound. Belongs to one loop.

    Args:
        worker: Registrations and what is done before and after a turn.
        options: Limits.
    """

    def __init__(self, worker: TowlineWorker, options: KeeperOptions) -> None:
        self._worker = worker
        self._options = options
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self._bytes = 0
        self._resumable: Counter[str] = Counter()
        self.turns: Counter[str] = Counter()
        """Turns by how they were carried out: replayed, kept, and stale (kept, but not fitting: replayed)."""

    def __len__(self) -> int:
        return len(self._kept)

    def carry_out(
        self, turn: Turn, request: Any, token: str, *, check: Callable[[Any], None] = lambda _: None
    ) -> sdk.Carried:
        """Run the turn's code, and have `turn` told of what it means for the run.

        Args:
            turn: Hears what the turn says.
            request: The turn, its large payloads fetched.
            token: Completion token of the work item.
            check: Is shown the answer; what it raises of `LOST` fails the run.

        Raises:
            HistoryMissingError: The request has not all of the history, and nothing is kept any more.
        """
        kept = self._take(request)
        if kept is None and request.requiresHistoryStreaming:
            raise HistoryMissingError(f"{request.instanceId}: what was kept of it has gone meanwhile")
        self.turns["replayed" if kept is None else "kept"] += 1
        # All turns of one orchestration share its context variables: code that sets one before a wait and
        # resets it afterwards does so in one context, as it would if its turns were one.
        variables = contextvars.copy_context() if kept is None else kept.variables
        assert variables is not None
        carried = variables.run(self._run, turn, request, token, kept)
        try:
            check(carried.answer.message)
        except LOST as error:
            # Before the code is closed: its asks are still to be answered for.
            failed = variables.run(self.fail, turn, request, token, error)
            if carried.orchestration is not None:
                carried.orchestration.variables = variables
                _close(carried.orchestration)
            return failed
        variables.run(self._end, turn, request, carried)
        if carried.orchestration is not None:
            carried.orchestration.variables = variables
            carried.orchestration.host_state = turn.run
        return carried

    def goes_on(self, request: Any) -> bool:
        """Whether the turn of `request`, which has not all of the history, can be carried out all the same.

        If not, what is kept is let go: the history has to be fetched, for a replay.
        """
        kept = self._kept.get(request.instanceId)
        if kept is not None and self._fits(kept.orchestration, request):
            return True
        self._let_go(request.instanceId)
        return False

    def fail(self, turn: Turn, request: Any, token: str, error: Exception) -> sdk.Carried:
        """The turn can't be carried out, or not reported: the run fails with `error`."""
        carried = sdk.Carried(sdk.turn_answer(sdk.failed_turn(request, token, error)), None)
        self._end(turn, request, carried)
        return carried

    def _run(self, turn: Turn, request: Any, token: str, kept: sdk.Orchestration | None) -> sdk.Carried:
        if kept is not None:
            turn.run = kept.host_state
        with active(turn):
            return sdk.carry_out(self._worker, request, token, kept)

    def _end(self, turn: Turn, request: Any, carried: sdk.Carried) -> None:
        answer = carried.answer.message
        if isinstance(answer, sdk.OrchestratorResponse):
            with active(turn):
                self._worker.end_turn(turn, request, answer)

    def keep(self, request: Any, carried: sdk.Carried, now: float) -> None:
        """Keep what the turn of `request` left, if it goes on; else close it. `now` is the loop's time."""
        orchestration = carried.orchestration
        if orchestration is None:
            return
        if not carried.goes_on or self._options.replay == "always":
            _close(orchestration)
            return
        self._let_go(request.instanceId)
        orchestration.history_bytes += _new_bytes(orchestration, request, carried)
        self._bytes += orchestration.history_bytes
        self._kept[request.instanceId] = _Kept(orchestration, now)
        while len(self._kept) > 1 and self._is_too_much():
            self._let_go(next(iter(self._kept)))

    def drop(self, instance_id: str, carried: sdk.Carried) -> None:
        """A turn's report was not accepted: what it left must not be gone on with."""
        orchestration = carried.orchestration
        if orchestration is None or orchestration.turn_count != carried.turn_count:
            # A later turn went on with it: its history said that the scheduler has accepted this one.
            return
        kept = self._kept.get(instance_id)
        if kept is not None and kept.orchestration is orchestration:
            self._let_go(instance_id)
        else:
            _close(orchestration)

    def expire(self, now: float) -> None:
        """Let go of what has had no turn for long."""
        while self._kept:
            instance_id, oldest = next(iter(self._kept.items()))
            if now - oldest.since <= self._options.max_age_s:
                return
            self._let_go(instance_id)

    def close(self) -> None:
        """Let go of everything."""
        while self._kept:
            self._let_go(next(iter(self._kept)))

    def _is_too_much(self) -> bool:
        return len(self._kept) > self._options.max_count or self._bytes > self._options.max_bytes

    def _pop(self, instance_id: str) -> _Kept | None:
        kept = self._kept.pop(instance_id, None)
        if kept is not None:
            self._bytes -= kept.orchestration.history_bytes
        return kept

    def _take(self, request: Any) -> sdk.Orchestration | None:
        kept = self._pop(request.instanceId)
        if kept is None:
            return None
        orchestration = kept.orchestration
        # A request without all of the history has been through `goes_on`, and would be a sample once more.
        looked_at = request.requiresHistoryStreaming
        if orchestration.extended_by(request) if looked_at else self._fits(orchestration, request):
            return orchestration
        _close(orchestration)
        return None

    def _fits(self, orchestration: sdk.Orchestration, request: Any) -> bool:
        if not orchestration.extended_by(request):
            self.turns["stale"] += 1
            return False
        return not self._is_sample(orchestration.name)

    def _is_sample(self, name: str) -> bool:
        if self._options.replay == "never":
            return False
        self._resumable[name] += 1
        number = self._resumable[name]
        return number <= _FIRST_REPLAYED or number % self._options.replay_every == 0

    def _let_go(self, instance_id: str) -> None:
        kept = self._pop(instance_id)
        if kept is not None:
            _close(kept.orchestration)


def _new_bytes(orchestration: sdk.Orchestration, request: Any, carried: sdk.Carried) -> int:
    """What a turn adds to the history that is kept: to measure all of it takes as long as to read it."""
    known = orchestration.history_bytes > 0
    news = sum(event.ByteSize() for event in request.newEvents) if known else request.ByteSize()
    return news + carried.answer.message.ByteSize()


def _close(orchestration: sdk.Orchestration) -> None:
    orchestration.close()
    run = orchestration.host_state
    if run is not None:
        run.asks = None  # they refer to the run: the garbage collector would be needed
