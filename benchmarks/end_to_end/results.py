"""Measured rows, their file, and their medians. No I/O but for the one file."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

Key = tuple[str, int, int]
"""A workload: its name, runs, and the model's milliseconds."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One workload on one system, once."""

    workload: str
    system: str
    runs: int
    model_ms: int
    seconds: float
    lost: int
    duplicates: int
    wrong: int
    cpu_ms_per_run: dict[str, float]
    own_cpu_ms_per_run: float
    """Of all processes but Kafka and Redis."""
    peak_mb: dict[str, float]
    peak_together_mb: float
    """Of the same processes as `own_cpu_ms_per_run`, at one moment."""
    load: float
    """Load average of the last minute."""
    yardstick_ms: float
    """What one agent turn alone cost in CPU time, before and after; see `yardstick`."""
    others_cores: float
    """Cores that were kept busy by others than the system (the load generator included)."""
    round: str = ""
    """Rows of one round were measured one after another: ratios are made within it."""
    latency_ms: dict[str, float] = field(default_factory=dict[str, float])
    facts: dict[str, float] = field(default_factory=dict[str, float])
    """What only this workload has."""

    @property
    def key(self) -> Key:
        """Which workload it is."""
        return (self.workload, self.runs, self.model_ms)

    @property
    def runs_per_s(self) -> float:
        """Throughput of what was answered."""
        return (self.runs - self.lost) / self.seconds

    @property
    def in_yardsticks(self) -> float:
        """Own CPU a run in what an agent turn cost at that moment."""
        return self.own_cpu_ms_per_run / self.yardstick_ms


@dataclass(frozen=True, slots=True)
class Summary:
    """All rounds of one workload on one system: medians; losses added up."""

    key: Key
    system: str
    rounds: int
    runs_per_s: float
    own_cpu_ms: float
    in_yardsticks: float
    latency_ms: Mapping[str, float]
    cpu_ms: Mapping[str, float]
    peak_mb: Mapping[str, float]
    peak_together_mb: float
    lost: int
    duplicates: int
    wrong: int
    load: float
    yardstick_ms: float
    others_cores: float
    facts: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Ratio:
    """One system beside another in the same workload: the median of the rounds' ratios."""

    speed: float
    """Runs a second, or for one in flight the inverse of p50: above 1, the first is faster."""
    cpu: float
    """Own CPU a run: below 1, the first costs less."""


def _median(values: Iterable[float]) -> float:
    return statistics.median(list(values))


def _medians(maps: Sequence[Mapping[str, float]]) -> dict[str, float]:
    names = list(dict.fromkeys(name for one in maps for name in one))
    return {name: _median(one[name] for one in maps if name in one) for name in names}


def summarise(rows: Sequence[Measured]) -> list[Summary]:
    """One summary for each workload and system, in the order of their first rows."""
    groups: dict[tuple[Key, str], list[Measured]] = {}
    for row in rows:
        groups.setdefault((row.key, row.system), []).append(row)
    return [
        Summary(
            key=key,
            system=system,
            rounds=len(group),
            runs_per_s=_median(row.runs_per_s for row in group),
            own_cpu_ms=_median(row.own_cpu_ms_per_run for row in group),
            in_yardsticks=_median(row.in_yardsticks for row in group),
            latency_ms=_medians([row.latency_ms for row in group]),
            cpu_ms=_medians([row.cpu_ms_per_run for row in group]),
            peak_mb=_medians([row.peak_mb for row in group]),
            peak_together_mb=_median(row.peak_together_mb for row in group),
            lost=sum(row.lost for row in group),
            duplicates=sum(row.duplicates for row in group),
            wrong=sum(row.wrong for row in group),
            load=_median(row.load for row in group),
            yardstick_ms=_median(row.yardstick_ms for row in group),
            others_cores=_median(row.others_cores for row in group),
            facts=_medians([row.facts for row in group]),
        )
        for (key, system), group in groups.items()
    ]


def ratio(rows: Sequence[Measured], key: Key, first: str, second: str) -> Ratio | None:
    """`first` beside `second`; None unless some round has both."""
    by_round: dict[str, dict[str, Measured]] = {}
    for row in rows:
        if row.key == key and row.system in (first, second):
            by_round.setdefault(row.round, {})[row.system] = row
    pairs = [(both[first], both[second]) for both in by_round.values() if len(both) == 2]
    if not pairs:
        return None
    return Ratio(
        speed=_median(_speed(one) / _speed(other) for one, other in pairs),
        cpu=_median(one.own_cpu_ms_per_run / other.own_cpu_ms_per_run for one, other in pairs),
    )


def _speed(row: Measured) -> float:
    return 1 / row.latency_ms["p50"] if row.workload == "one in flight" else row.runs_per_s


def percentiles(seconds: Iterable[float]) -> dict[str, float]:
    """p50 and p99 in milliseconds (nearest rank)."""
    ordered = sorted(seconds)
    if not ordered:
        return {}
    return {
        name: ordered[min(len(ordered) - 1, int(len(ordered) * part))] * 1000
        for name, part in (("p50", 0.5), ("p99", 0.99))
    }


class ResultsError(ValueError):
    """A results file that cannot be read; the message names the field and the fix."""


@dataclass(slots=True)
class Results:
    """What one file holds."""

    about: dict[str, Any] = field(default_factory=dict[str, Any])
    """Time, machine, versions, systems."""
    not_run: dict[str, str] = field(default_factory=dict[str, str])
    """Reasons, by ``system`` or ``system: workload``."""
    at_rest: dict[str, dict[str, float]] = field(default_factory=dict[str, dict[str, float]])
    """By system: megabytes of each process, and ``cores`` that they use together while nothing is asked."""
    rows: list[Measured] = field(default_factory=list[Measured])

    def merge(self, newer: Results) -> None:
        """Take `newer` in: its rows besides those here, its facts in place of those here."""
        ran = {row.system for row in newer.rows}
        self.about = {
            **self.about,
            **newer.about,
            "systems": {**self.about.get("systems", {}), **newer.about.get("systems", {})},
        }
        self.not_run = {
            name: why for name, why in {**self.not_run, **newer.not_run}.items() if name not in ran
        }
        self.at_rest.update(newer.at_rest)
        self.rows += newer.rows

    def write(self, path: Path) -> None:
        """As JSON."""
        facts = {
            **self.about,
            "not_run": self.not_run,
            "at_rest": self.at_rest,
            "measured": [{**asdict(row), "runs_per_s": row.runs_per_s} for row in self.rows],
        }
        path.write_text(json.dumps(facts, indent=1) + "\n")

    @classmethod
    def read(cls, path: Path) -> Results:
        """What `write` wrote.

        Raises:
            ResultsError: It is not such a file.
        """
        facts = json.loads(path.read_text())
        known = {one.name for one in fields(Measured)}
        try:
            rows = [
                Measured(**{name: value for name, value in row.items() if name in known})
                for row in facts.pop("measured")
            ]
            return cls(not_run=facts.pop("not_run"), at_rest=facts.pop("at_rest"), rows=rows, about=facts)
        except (KeyError, TypeError) as error:
            raise ResultsError(
                f"{path}: {error}: not a results file of this version; move it away or give another --out"
            ) from error
