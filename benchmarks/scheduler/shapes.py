"""Shapes of runs on both servers, by turns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TypeAlias

from benchmarks.scheduler.bench import DURABLE, MEMORY, SHAPES, Bench, Sample, in_turn, median, note

Ratios: TypeAlias = dict[str, list[float]]
"""By shape: rate of the durable server as a multiple of the other's, a figure for each round."""


def measure_shapes(
    open_benches: Callable[[ExitStack, int], Sequence[Bench]],
    rounds: int,
    scale: float,
    only: Sequence[str] = (),
) -> tuple[dict[str, dict[str, Sample]], Ratios]:
    """A burst of each shape on both servers, by turns, in each round.

    Each round has processes of its own: what a process happens to get (hash seed, places in memory) stays
    with it for life, and series of rounds that kept theirs differed by up to 15 %.

    Args:
        open_benches: Starts the servers and workers of a round, whose number it is told.
        rounds: How many.
        scale: Runs in a burst, as part of the shape's own.
        only: First words of the shapes wanted; none: all.

    Returns:
        Medians by shape and server, and the ratios of their rates.
    """
    shapes = [shape for shape in SHAPES if not only or shape.name.split()[0] in only]
    samples = {shape.name: {MEMORY: list[Sample](), DURABLE: list[Sample]()} for shape in shapes}
    for number in range(rounds):
        with ExitStack() as exits:
            benches = open_benches(exits, number)
            for shape in shapes:
                for bench in benches:
                    bench.burst(shape, 20)  # warm
                for bench in in_turn(benches, number):
                    taken = bench.burst(shape, max(20, int(shape.runs * scale)))
                    samples[shape.name][bench.name].append(taken)
        note(f"shapes: round {number + 1} of {rounds}")
    table = {name: {server: median(taken) for server, taken in row.items()} for name, row in samples.items()}
    ratios = {
        name: [
            ours.rate_per_s / theirs.rate_per_s
            for ours, theirs in zip(row[DURABLE], row[MEMORY], strict=True)
        ]
        for name, row in samples.items()
    }
    return table, ratios


def measure_latencies(benches: Sequence[Bench], rounds: int) -> dict[str, dict[str, float]]:
    """Median time of a run that is alone, in ms, by shape and server."""
    table: dict[str, dict[str, float]] = {}
    for shape in SHAPES:
        taken: dict[str, list[float]] = {bench.name: [] for bench in benches}
        for number in range(rounds):
            for bench in in_turn(benches, number):
                taken[bench.name] += bench.latencies_ms(shape, 10)
        table[shape.name] = {name: sorted(times)[len(times) // 2] for name, times in taken.items()}
        note(f"alone, {shape.name}: {table[shape.name]}")
    return table
