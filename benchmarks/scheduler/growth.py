"""Whether a run costs the same with much behind it: finished instances, a long history, many waiters."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import grpc
from benchmarks.scheduler.bench import (
    DURABLE,
    SHAPES,
    Bench,
    Sample,
    Shape,
    folder_mib,
    in_turn,
    median,
    note,
)
from benchmarks.scheduler.files import make_file
from benchmarks.scheduler.worker import HUB
from durabletask.internal import orchestrator_service_pb2 as pb
from durabletask.internal.orchestrator_service_pb2_grpc import TaskHubSidecarServiceStub
from tests.conformance.processes import cpu_s


def measure_finished(
    folder: Path, steps: Sequence[int], rounds: int, starters: int
) -> list[dict[str, float]]:
    """One-activity runs by turns on servers whose files have so many finished instances."""
    shape = next(shape for shape in SHAPES if shape.name == "one activity")
    with ExitStack() as exits:
        benches: dict[int, Bench] = {}
        for step in steps:
            make_file(folder / str(step), finished=step)
            benches[step] = Bench(DURABLE, folder / str(step), exits, starters)
            benches[step].burst(shape, 50)  # warm
            note(f"{step} finished instances: {folder_mib(folder / str(step)):.1f} MiB")
        taken: dict[int, list[Sample]] = {step: [] for step in steps}
        for number in range(rounds):
            for step in in_turn(steps, number):
                taken[step].append(benches[step].burst(shape, 150))
        rows: list[dict[str, float]] = []
        for step in steps:
            of = median(taken[step])
            rows.append(
                {
                    "finished": step,
                    "rate_per_s": of.rate_per_s,
                    "server_ms": of.server_ms,
                    "file_mib": folder_mib(folder / str(step)),
                }
            )
            note(f"finished: {rows[-1]}")
    return rows


def measure_histories(benches: Sequence[Bench], rounds: int) -> dict[str, list[dict[str, float]]]:
    """CPU an event in histories of about 10, 100 and 1,000 events: an activity in sequence makes four."""
    sizes = ((2, 60), (25, 8), (250, 1))
    taken: dict[tuple[str, int], list[Sample]] = {}
    for number in range(rounds):
        for activities, runs in sizes:
            shape = Shape("history", "sequence", str(activities), runs)
            for bench in in_turn(benches, number):
                if number == 0:
                    bench.burst(shape, 1)  # warm
                taken.setdefault((bench.name, activities), []).append(bench.burst(shape, runs))
    table: dict[str, list[dict[str, float]]] = {bench.name: [] for bench in benches}
    for (name, activities), samples in taken.items():
        events, of = 4 * activities + 4, median(samples)
        row = {
            "events": events,
            "server_us_per_event": of.server_ms * 1000 / events,
            "worker_us_per_event": of.worker_ms * 1000 / events,
        }
        table[name].append(row)
        note(f"history on {name}: {row}")
    return table


async def measure_waiters(bench: Bench, count: int) -> dict[str, float]:
    """``count`` open waits, each for another run; then all runs are ended."""
    metadata = (("taskhub", HUB),)
    instances = [bench.start("waits", "null") for _ in range(count)]
    async with grpc.aio.insecure_channel(bench.server.address) as channel:
        stub = TaskHubSidecarServiceStub(channel)

        async def wait(instance: str) -> None:
            request = pb.GetInstanceRequest(instanceId=instance)
            await stub.WaitForInstanceCompletion(request, metadata=metadata, timeout=120)

        waiting = [asyncio.create_task(wait(instance)) for instance in instances]
        await asyncio.sleep(1)
        idle, began = cpu_s(bench.server.pid), time.perf_counter()
        await asyncio.sleep(5)
        idle_percent = (cpu_s(bench.server.pid) - idle) / (time.perf_counter() - began) * 100
        hello = time.perf_counter()
        await stub.GetInstance(pb.GetInstanceRequest(instanceId=instances[0]), metadata=metadata)
        get_ms = (time.perf_counter() - hello) * 1000
        began = time.perf_counter()
        for instance in instances:
            request = pb.RaiseEventRequest(instanceId=instance, name="end")
            await stub.RaiseEvent(request, metadata=metadata)
        await asyncio.gather(*waiting)
        took = time.perf_counter() - began
    return {"waiters": count, "idle_percent": idle_percent, "get_ms": get_ms, "all_served_s": took}
