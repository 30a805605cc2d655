"""What was measured, as JSON and as Markdown."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from statistics import quantiles

from benchmarks.scheduler.bench import DURABLE, MEMORY, Sample


@dataclass(slots=True)
class Report:
    """What was measured: a part that was not asked for is empty."""

    machine: dict[str, object]
    shapes: dict[str, dict[str, Sample]] = field(default_factory=dict)
    rate_ratios: dict[str, list[float]] = field(default_factory=dict)
    """By shape: rate as a multiple of the in-memory server's, a figure for each round."""
    alone_ms: dict[str, dict[str, float]] = field(default_factory=dict)
    histories: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    finished: list[dict[str, float]] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)
    """Everything else: its name with the unit, and the value."""


def markdown(report: Report) -> str:
    """Tables of what there is."""
    machine = (
        "{cores} cores, Python {python}, load {load:.1f}, fdatasync {fdatasync_ms:.2f} ms, "
        "{starters} threads start runs".format(**report.machine)
    )
    parts = (
        list(_shapes(report.shapes)),
        list(_rate_ratios(report.rate_ratios)),
        list(_alone(report.alone_ms)),
        list(_histories(report.histories)),
        list(_finished(report.finished)),
        [f"- {name}: {value:.3g}" for name, value in report.figures.items()],
    )
    return "\n\n".join([machine, *("\n".join(lines) for lines in parts if lines)])


def _shapes(table: dict[str, dict[str, Sample]]) -> Iterator[str]:
    if not table:
        return
    yield (
        "| shape | rate /s | in-memory | ratio | server ms/run | in-memory | ratio | worker ms/run "
        "| in-memory | all ms/run | in-memory | cores | in-memory |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|---|---|---|"
    for name, row in table.items():
        ours, theirs = row[DURABLE], row[MEMORY]
        yield (
            f"| {name} | {ours.rate_per_s:.0f} | {theirs.rate_per_s:.0f} "
            f"| {ours.rate_per_s / theirs.rate_per_s:.2f} "
            f"| {ours.server_ms:.2f} | {theirs.server_ms:.2f} | {ours.server_ms / theirs.server_ms:.2f} "
            f"| {ours.worker_ms:.2f} | {theirs.worker_ms:.2f} "
            f"| {_all_ms(ours):.2f} | {_all_ms(theirs):.2f} | {ours.cores:.2f} | {theirs.cores:.2f} |"
        )


def _rate_ratios(ratios: dict[str, list[float]]) -> Iterator[str]:
    if not ratios:
        return
    yield "| rate to in-memory, by round | median | quarter below | quarter above | rounds |"
    yield "|---|---|---|---|---|"
    for name, figures in ratios.items():
        low, middle, high = quantiles(figures, n=4, method="inclusive") if len(figures) > 1 else figures * 3
        yield f"| {name} | {middle:.2f} | {low:.2f} | {high:.2f} | {len(figures)} |"


def _all_ms(sample: Sample) -> float:
    return sample.server_ms + sample.worker_ms + sample.client_ms


def _alone(table: dict[str, dict[str, float]]) -> Iterator[str]:
    if not table:
        return
    yield "| a run alone | p50 ms | in-memory |"
    yield "|---|---|---|"
    for name, row in table.items():
        yield f"| {name} | {row[DURABLE]:.1f} | {row[MEMORY]:.1f} |"


def _histories(table: dict[str, list[dict[str, float]]]) -> Iterator[str]:
    if not table:
        return
    yield "| events in a history | server us/event | in-memory | worker us/event | in-memory |"
    yield "|---|---|---|---|---|"
    for ours, theirs in zip(table[DURABLE], table[MEMORY], strict=True):
        yield (
            f"| {ours['events']:,.0f} | {ours['server_us_per_event']:.0f} "
            f"| {theirs['server_us_per_event']:.0f} "
            f"| {ours['worker_us_per_event']:.0f} | {theirs['worker_us_per_event']:.0f} |"
        )


def _finished(rows: list[dict[str, float]]) -> Iterator[str]:
    if not rows:
        return
    yield "| finished instances | rate /s | server ms/run | file MiB |"
    yield "|---|---|---|---|"
    for row in rows:
        yield (
            f"| {row['finished']:,.0f} | {row['rate_per_s']:.0f} | {row['server_ms']:.2f} "
            f"| {row['file_mib']:.1f} |"
        )
