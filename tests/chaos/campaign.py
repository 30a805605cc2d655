"""One campaign: start a fleet, load and faults, wait until all is quiet, check."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.chaos.checker import Verdict, Violation, check
from tests.chaos.history import Effect, History
from tests.chaos.load import Load
from tests.chaos.nemesis import Fault, Fleet, Happened, Nemesis

_RAISE_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What is done. The seed decides the scenes, their inputs and the faults; not the interleaving."""

    seed: int
    scenes: list[str]
    faults: tuple[Fault, ...] | Generator[Fault]
    faults_s: float
    """How long load and faults go on."""
    every_s: float
    """Between the beginnings of two faults."""
    stopped_s: float
    """How long a part is stopped, a link parted, a disk full."""
    settle_s: float
    """Bound of the wait for quiet afterwards."""
    hold: bool = False
    """First all runs are brought in flight, then come the faults, and after them decisions and cancels."""


@dataclass(frozen=True, slots=True)
class Result:
    """All that a report needs."""

    plan: Plan
    verdict: Verdict
    happened: tuple[Happened, ...]
    tally: Counter[str]
    outcome_times_s: tuple[float, ...]
    """When each run's outcome was first published, after the load's beginning."""
    settled_after_s: float
    in_flight: int
    """Runs without an outcome when the faults began."""
    problems: tuple[str, ...] = field(default=())
    """What else went wrong: a part that did not come back."""

    @property
    def is_good(self) -> bool:
        return not self.verdict.violations and not self.problems


async def run(fleet: Fleet, plan: Plan, say: Callable[[str], None]) -> Result:
    """Against a fleet that is running."""
    async with Load(fleet.stack.kafka, plan.seed, fleet.stack.relay_url, held=plan.hold) as load:
        nemesis = Nemesis(fleet, say=say, stopped_s=plan.stopped_s)
        began = time.monotonic()
        began_ms = time.time() * 1000
        if plan.hold:
            await load.play(plan.scenes, for_s=_RAISE_S)
            if not await load.all_wait(within_s=plan.settle_s):
                nemesis.problems.append("not all runs were in flight in time")
        in_flight = load.in_flight()
        say(f"{time.monotonic() - began:6.1f} s  {in_flight} runs are in flight")
        await asyncio.gather(
            load.play([] if plan.hold else plan.scenes, for_s=plan.faults_s),
            nemesis.rage(plan.faults, for_s=plan.faults_s, every_s=plan.every_s),
        )
        load.release()
        raged_s = time.monotonic() - began
        say(f"{raged_s:6.1f} s  all parts are back; {len(load.open())} of {len(load.sent)} are open")
        settled = await load.settled(within_s=plan.settle_s)
        settled_s = time.monotonic() - began
        say(f"{settled_s:6.1f} s  {'quiet' if settled else 'not quiet in time'}")
        history = History(
            sent=tuple(load.sent.values()),
            taken=load.of("runs", "approvals"),
            published=load.of("events", "results"),
            dead=load.of("dead-letters"),
            effects=effects(fleet.effects_file),
        )
        tally, still_open = load.tally(), load.open()
    problems = list(nemesis.problems)
    if not settled:
        problems.append(f"not quiet {plan.settle_s:g} s after the faults: {still_open[:20]}")
    outcomes = {record.id: record.timestamp_ms for record in reversed(history.published)}
    times = (time_ms for event_id, time_ms in outcomes.items() if event_id.endswith("/outcome"))
    return Result(
        plan=plan,
        verdict=check(history),
        happened=tuple(nemesis.happened),
        tally=tally,
        outcome_times_s=tuple(sorted((time_ms - began_ms) / 1000 for time_ms in times)),
        settled_after_s=settled_s,
        in_flight=in_flight,
        problems=tuple(problems),
    )


def effects(file: Path) -> list[Effect]:
    """What the activities wrote down."""
    return [Effect(**json.loads(line)) for line in file.read_text().splitlines()]


def told(violations: tuple[Violation, ...], limit: int = 30) -> str:
    """The first of them, a line each."""
    return "\n".join(map(str, violations[:limit]))
