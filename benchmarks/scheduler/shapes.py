"""Shapes of runs on both servers, by turns."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.scheduler.bench import SHAPES, Bench, Sample, in_turn, median, note


def measure_shapes(
    benches: Sequence[Bench], rounds: int, scale: float, only: Sequence[str] = ()
) -> dict[str, dict[str, Sample]]:
    """Medians over ``rounds`` bursts, by shape and server. ``only``: first words of the shapes wanted."""
    table: dict[str, dict[str, Sample]] = {}
    for shape in SHAPES:
        if only and shape.name.split()[0] not in only:
            continue
        for bench in benches:
            bench.burst(shape, 20)  # warm
        samples: dict[str, list[Sample]] = {bench.name: [] for bench in benches}
        for number in range(rounds):
            for bench in in_turn(benches, number):
                samples[bench.name].append(bench.burst(shape, max(20, int(shape.runs * scale))))
        table[shape.name] = {name: median(taken) for name, taken in samples.items()}
        note(f"{shape.name}: {table[shape.name]}")
    return table


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
