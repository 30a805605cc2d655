"""What a rate takes, calculated from measured costs: ``python benchmarks/scale.py [--write docs/scale.md]``.

Reads the rows of `benchmarks/run.py` (``end_to_end.json``): CPU a run by process from "at once", what an
approval costs from "approvals", what a waiting run keeps from "waiting approvals". Up to 10,000 runs a second
and ten million waiting runs, with the first wall at each step and what moves it.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

if __name__ == "__main__":  # `python benchmarks/scale.py` puts its own folder on the path, not the root
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.end_to_end.pages import replaced
from benchmarks.end_to_end.results import Results, Summary, summarise
from benchmarks.end_to_end.yardstick import AT_REST_MS

from towline.contracts.topics import TOPICS

RATES: Final = (10, 100, 300, 1_000, 3_000, 10_000)
WAITING: Final = (100_000, 1_000_000, 10_000_000)
ROLES: Final = ("worker", "scheduler", "relay", "bridge", "kafka", "valkey")
BUSY_AT_MOST: Final = 0.7
"""Of a core: a process is not planned fuller, so that bursts and failovers fit."""
MACHINE_CORES: Final = 2
"""Of the machine that everything was measured on."""
PARTITIONS: Final = TOPICS[0].partitions
"""Of the contract; what was measured has fewer, on one machine."""
MARK: Final = "benchmarks/scale.py"


class ScaleError(ValueError):
    """The results lack what the calculation needs; the message says what to run."""


@dataclass(frozen=True, slots=True)
class Costs:
    """Of one run of Towline."""

    cpu_ms: Mapping[str, float]
    """By role, with Kafka and Valkey."""
    approval_factor: float
    """Own CPU of a run with an approval, in plain runs."""
    waiting_kb: Mapping[str, float]
    """What a run keeps while it waits, by place (``disk``, ``redis``)."""
    yardstick_ms: float
    """What an agent turn cost when this was measured."""

    @property
    def together_ms(self) -> float:
        """All roles."""
        return sum(self.cpu_ms.values())

    def at_rest(self) -> Costs:
        """The same on a machine at rest, if all costs shrink as the yardstick does."""
        by = min(1.0, AT_REST_MS / self.yardstick_ms)
        cpu_ms = {role: ms * by for role, ms in self.cpu_ms.items()}
        return Costs(cpu_ms, self.approval_factor, self.waiting_kb, min(AT_REST_MS, self.yardstick_ms))


@dataclass(frozen=True, slots=True)
class Wall:
    """Something that one deployment cannot get past without another shape."""

    at_per_s: float
    """Runs a second."""
    what: str
    moved_by: str


def costs(results: Results) -> Costs:
    """What Towline's rows say.

    Raises:
        ScaleError: There is no row of plain runs; it says what to run.
    """
    summaries = summarise(results.rows)
    ours = [one for one in summaries if one.system == "towline"]
    plain = _largest([one for one in ours if one.key[0] == "at once" and one.key[2] == 0])
    if plain is None:
        raise ScaleError("no row of towline, at once, L = 0: run benchmarks/run.py --systems towline --merge")
    approved = _largest([one for one in ours if one.key[0] == "approvals"])
    # What a waiting run keeps is the same with any number of workers.
    any_of_ours = [one for one in summaries if one.system in ("towline", "towline-x2")]
    waiting = _largest([one for one in any_of_ours if one.key[0] == "waiting approvals"])
    return Costs(
        cpu_ms={role: plain.cpu_ms.get(role, 0.0) for role in ROLES},
        approval_factor=approved.in_yardsticks / plain.in_yardsticks if approved else math.nan,
        waiting_kb={
            place: waiting.facts[f"waiting_{place}_kb"]
            for place in ("disk", "redis")
            if waiting is not None and f"waiting_{place}_kb" in waiting.facts
        },
        yardstick_ms=plain.yardstick_ms,
    )


def _largest(found: Sequence[Summary]) -> Summary | None:
    return max(found, key=lambda one: one.key[1], default=None)


def processes(role: str, rate: float, cost: Costs) -> int:
    """How many processes of one core `rate` runs a second take."""
    return max(1, math.ceil(rate * cost.cpu_ms[role] / 1000 / BUSY_AT_MOST))


def one_process_per_s(role: str, cost: Costs) -> float:
    """Runs a second that one process of `role` on one core carries."""
    return BUSY_AT_MOST * 1000 / cost.cpu_ms[role] if cost.cpu_ms[role] else math.inf


def walls(cost: Costs) -> list[Wall]:
    """All, the lowest first."""
    return sorted(
        (
            Wall(
                BUSY_AT_MOST * MACHINE_CORES * 1000 / cost.together_ms,
                f"the {MACHINE_CORES} cores of one machine",
                "each role on cores of its own",
            ),
            Wall(
                one_process_per_s("worker", cost),
                "one worker process",
                "more workers of the same app (`--processes`, or replicas): they share the work as they are",
            ),
            Wall(
                one_process_per_s("scheduler", cost),
                "the scheduler: one process, one SQLite file, one writer",
                "task hubs: apps divided over schedulers, each with its own topic prefix; or Azure Durable "
                "Task Scheduler, which speaks the same protocol",
            ),
            Wall(
                one_process_per_s("relay", cost), "one relay process", "replicas: they share a consumer group"
            ),
            Wall(
                one_process_per_s("bridge", cost),
                "one bridge process",
                "replicas: they share a consumer group",
            ),
            Wall(one_process_per_s("kafka", cost), "one core of the broker", "more cores, then more brokers"),
            Wall(
                one_process_per_s("valkey", cost),
                "Valkey: one core",
                "a cluster: a run's keys carry its id as hash tag; the index of all runs is one slot",
            ),
            Wall(
                PARTITIONS * one_process_per_s("relay", cost),
                f"{PARTITIONS} partitions: no more relays share the work than there are partitions",
                "more partitions before that, since growing a topic moves keys: 48",
            ),
            Wall(
                PARTITIONS * one_process_per_s("bridge", cost),
                f"{PARTITIONS} partitions: no more bridges share the work than there are partitions",
                "more partitions before that, since growing a topic moves keys: 48",
            ),
        ),
        key=lambda wall: wall.at_per_s,
    )


def next_wall(rate: float, cost: Costs) -> Wall | None:
    """The first that lies above `rate`."""
    return next((wall for wall in walls(cost) if wall.at_per_s > rate), None)


def markdown(cost: Costs) -> str:
    """All tables."""
    rest = cost.at_rest()
    million = [one.together_ms / 3.6 for one in (cost, rest)]
    lines = [
        "### A run's cost",
        "",
        f"Measured while an agent turn cost {cost.yardstick_ms:.2f} ms ({AT_REST_MS} at rest).",
        "*At rest* is calculated: all costs shrunk as that turn's does.",
        "",
        "| | measured, ms CPU | at rest, ms CPU | runs/s of one process, measured | at rest |",
        "|---|---|---|---|---|",
    ]
    for role in ROLES:
        each = (f"{one_process_per_s(role, one):,.0f}" for one in (cost, rest))
        lines.append(f"| {role} | {cost.cpu_ms[role]:.2f} | {rest.cpu_ms[role]:.2f} | {' | '.join(each)} |")
    lines += [
        f"| together | {cost.together_ms:.2f} | {rest.together_ms:.2f} | | |",
        "",
        f"CPU hours a million runs: {million[0]:.1f} measured, {million[1]:.1f} at rest;",
        f"a million runs with an approval: {cost.approval_factor:.1f} times as much.",
        "",
        "### Steps",
        "",
        f"Processes of one core each, none busier than {BUSY_AT_MOST:.0%}, by the measured costs.",
        "More than one scheduler means task hubs, or Azure Durable Task Scheduler in their place.",
        "",
        f"| runs/s | {' | '.join(ROLES)} | cores busy | first wall above | what moves it |",
        "|---" * (len(ROLES) + 4) + "|",
    ]
    for rate in RATES:
        wall = next_wall(rate, cost)
        counts = " | ".join(str(processes(role, rate, cost)) for role in ROLES)
        busy = rate * cost.together_ms / 1000
        named = "none of these" if wall is None else f"{wall.what}, at {wall.at_per_s:,.0f}"
        lines.append(f"| {rate:,} | {counts} | {busy:.1f} | {named} | {wall.moved_by if wall else ''} |")
    lines += [
        "",
        "All walls: " + "; ".join(f"{wall.at_per_s:,.0f}/s: {wall.what}" for wall in walls(cost)) + ".",
        "",
    ]
    return "\n".join(lines + _waiting(cost))


def _waiting(cost: Costs) -> list[str]:
    if not cost.waiting_kb:
        return ["### Waiting runs", "", "Not measured: run the workload `waiting`.", ""]
    each = ", ".join(f"{kb:.1f} KB {place}" for place, kb in cost.waiting_kb.items())
    lines = [
        "### Waiting runs",
        "",
        f"One keeps {each}.",
        "",
        f"| waiting | {' | '.join(f'{place}, GB' for place in cost.waiting_kb)} |",
        "|---" * (len(cost.waiting_kb) + 1) + "|",
    ]
    for count in WAITING:
        sizes = " | ".join(f"{count * kb / 2**20:,.1f}" for kb in cost.waiting_kb.values())
        lines.append(f"| {count:,} | {sizes} |")
    return [*lines, ""]


def main() -> int:
    """Print, or write into the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=Path("docs/results/end_to_end.json"))
    parser.add_argument("--write", type=Path, help="a page with the two marks; its tables are replaced")
    arguments = parser.parse_args()
    try:
        tables = markdown(costs(Results.read(arguments.results)))
        if arguments.write:
            arguments.write.write_text(replaced(arguments.write.read_text(), MARK, tables))
        else:
            print(tables)
    except (OSError, ValueError) as error:
        print(f"scale: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
