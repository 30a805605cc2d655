"""Plots of ``end_to_end.json``: latency against load, cost against work.

Run by the compared systems' Python, which has matplotlib: ``plots.py FOLDER``.
Imports nothing of this package.
"""

# pyright: basic, reportMissingImports=false
from __future__ import annotations

import json
import statistics
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt

# Each system has a colour of its own: there are more than the ten of the default. Strong ones first.
_PAIRS = mpl.colormaps["tab20"].colors
mpl.rcParams["axes.prop_cycle"] = mpl.cycler(color=_PAIRS[::2] + _PAIRS[1::2])

Series = dict[str, list[tuple[float, float, float]]]
"""By system: x, y, and a second y."""


def medians(rows: list[dict[str, Any]], x: str, y: str, second: str | None = None) -> Series:
    """Of each system's rows with the same x; x and y are keys, dotted into inner objects."""
    points: dict[tuple[str, float], list[tuple[float, float]]] = defaultdict(list)
    for row in rows:
        both = (_get(row, y), _get(row, second) if second else 0.0)
        points[row["system"], _get(row, x)].append(both)
    series: Series = defaultdict(list)
    for (system, at), values in sorted(points.items()):
        first, other = zip(*values, strict=True)
        series[system].append((at, statistics.median(first), statistics.median(other)))
    return series


def _get(row: dict[str, Any], path: str) -> float:
    value: Any = row
    for name in path.split("."):
        value = value[name]
    return float(value)


def latency(rows: list[dict[str, Any]], file: Path) -> None:
    """p50 (line) and p99 (dashed) against the offered rate."""
    figure, axes = plt.subplots(figsize=(9.5, 5), layout="constrained")
    for system, points in medians(rows, "facts.offered_per_s", "latency_ms.p50", "latency_ms.p99").items():
        rates, p50, p99 = zip(*points, strict=True)
        (line,) = axes.plot(rates, p50, marker="o", label=system)
        axes.plot(rates, p99, linestyle="--", alpha=0.5, color=line.get_color())
    axes.set(xscale="log", yscale="log", xlabel="offered runs a second", ylabel="ms from publish to result")
    axes.set_title("Latency against load, L = 0: p50, dashed p99")
    _finish(figure, axes, file)


def cost(rows: list[dict[str, Any]], file: Path) -> None:
    """Own CPU a run against the number of runs asked for at once."""
    figure, axes = plt.subplots(figsize=(9.5, 5), layout="constrained")
    for system, points in medians(rows, "runs", "own_cpu_ms_per_run").items():
        runs, ms, _ = zip(*points, strict=True)
        axes.plot(runs, ms, marker="o", label=system)
    axes.set(xscale="log", yscale="log", xlabel="runs at once", ylabel="own CPU ms a run")
    axes.set_title("Cost against work, L = 0")
    _finish(figure, axes, file)


def _finish(figure: Any, axes: Any, file: Path) -> None:
    axes.grid(visible=True, which="both", alpha=0.2)
    figure.legend(loc="outside right upper")
    figure.savefig(file, dpi=110)
    plt.close(figure)


def main() -> None:
    """Draw what there are rows for."""
    folder = Path(sys.argv[1])
    rows = json.loads((folder / "end_to_end.json").read_text())["measured"]
    swept = [row for row in rows if row["workload"].startswith("offered ") and not row["lost"]]
    worked = [row for row in rows if row["workload"] == "at once" and row["model_ms"] == 0]
    if swept:
        latency(swept, folder / "latency_against_load.png")
    if len({row["runs"] for row in worked}) > 1:
        cost(worked, folder / "cost_against_work.png")


if __name__ == "__main__":
    main()
