"""What is measured in one go: systems side by side, a sweep of rates, growth of data, a soak."""

from __future__ import annotations

import asyncio
import os
import platform
import tempfile
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Final, Protocol

from benchmarks.end_to_end import installed, report
from benchmarks.end_to_end.load import Load, load
from benchmarks.end_to_end.processes import memory_mb, processor
from benchmarks.end_to_end.results import Measured, Results
from benchmarks.end_to_end.systems import SYSTEMS
from benchmarks.end_to_end.systems.towline import Towline
from benchmarks.end_to_end.workloads import (
    Workload,
    at_once,
    cores,
    measure,
    memory_at_rest,
    offered,
    warm_up,
)

from towline.contracts.kafka import admin
from towline.contracts.settings import KafkaSettings
from towline.dev.kafka import KafkaPart

_AT_REST_S: Final = 5.0
_WARM_UP: Final = 50
_NEW_SYSTEM: Final = 500
"""Runs of a system that was started just before it is measured."""
_NEW_KAFKA: Final = 3_000
"""Runs after which Kafka's compiler has seen what is going to be measured."""
SWEEP_RATES: Final = (5, 10, 25, 50, 100, 200, 400, 800)
_SWEEP_S: Final = 5.0
_SATURATED_MS: Final = 1_000.0
"""A system whose median is above this at one rate is not asked for more."""
GROWTH_BATCH: Final = 500
_GROWTH_ROUNDS: Final = 5
_GROWTH_YOUNG: Final = 1_000
_SOAK_PIECE_S: Final = 60.0


@asynccontextmanager
async def running(names: Sequence[str], results: Results) -> AsyncGenerator[list[Load]]:
    """Kafka and all systems that can run here, warmed up; those that cannot are noted in `results`."""
    async with AsyncExitStack() as stack:
        at = await stack.enter_async_context(kafka())
        generators: list[Load] = []
        for name in able(names, results):
            generators.append(await stack.enter_async_context(started(name, at)))
            print(f"{name}: started", flush=True)
        results.about = about(names)
        await asyncio.sleep(_AT_REST_S)
        at_rest = await asyncio.gather(*(cores(generator.system, _AT_REST_S) for generator in generators))
        for generator, used in zip(generators, at_rest, strict=True):
            results.at_rest[generator.system.name] = {"cores": used, **memory_at_rest(generator.system)}
        yield generators


def able(names: Sequence[str], results: Results) -> list[str]:
    """Those that can run here; the others are noted in `results`."""
    for name in names:
        if reason := SYSTEMS[name].missing():
            results.not_run[name] = reason
            print(f"{name}: not run: {reason}", flush=True)
    return [name for name in names if name not in results.not_run]


@asynccontextmanager
async def started(
    name: str, at: tuple[str, int], *, tag: str = "", warm_up_runs: int = _WARM_UP
) -> AsyncGenerator[Load]:
    """One system, warmed up.

    Args:
        name: Which.
        at: Kafka's address and process id.
        tag: See `System`.
        warm_up_runs: Runs that it does first.
    """
    bootstrap, kafka_pid = at
    system = SYSTEMS[name](bootstrap, tag=tag)
    async with up(system), load(system, kafka_pid) as generator:
        await warm_up(generator, warm_up_runs)
        yield generator


@asynccontextmanager
async def kafka() -> AsyncGenerator[tuple[str, int]]:
    """A Kafka of its own: address and process id."""
    with tempfile.TemporaryDirectory(prefix="towline-bench-kafka-") as folder:
        part = KafkaPart(data=Path(folder))
        async with up(part):
            yield part.bootstrap, part.pid


class Startable(Protocol):
    """What has processes."""

    def start(self) -> object:
        """Start them, and wait until they serve."""
        ...

    def stop(self) -> object:
        """Stop those that run. Idempotent."""
        ...


@asynccontextmanager
async def up(startable: Startable) -> AsyncGenerator[None]:
    """Started on entry, stopped at the end: also when Ctrl-C comes while it is being started."""
    starting = asyncio.ensure_future(asyncio.to_thread(startable.start))
    try:
        # Cancelled, the thread would go on alone and start what nobody stops.
        await asyncio.shield(starting)
        yield
    finally:
        await asyncio.wait({starting})
        await asyncio.to_thread(startable.stop)


async def side_by_side(
    names: Sequence[str], workloads: Mapping[str, Workload], rounds: int, minutes: float
) -> Results:
    """Each workload on each system in turn, `rounds` times; no workload is begun after `minutes`.

    The order is drawn anew each time.
    """
    ends_at = time.monotonic() + minutes * 60
    results = Results()
    drawn = Random(1)
    async with running(names, results) as generators:
        for number in range(rounds):
            for key, workload in workloads.items():
                if time.monotonic() > ends_at:
                    print(f"{key}: not begun: the time is over", flush=True)
                    continue
                # The same neighbour before and after each, round by round, would be measured along with it.
                for generator in drawn.sample(generators, len(generators)):
                    await _measure_if_able(generator, key, workload, _round(results, number), results)
    return results


async def alone(
    names: Sequence[str], workloads: Mapping[str, Workload], rounds: int, minutes: float
) -> Results:
    """As `side_by_side`, but one system is up at a time: what the others do at rest hurts none.

    They take turns round by round on one Kafka; each is started anew for every round, and does all
    workloads then. Its topics are deleted afterwards: with a thousand partitions of earlier rounds Kafka
    stands still for 100 ms time and again, and takes twice the CPU.
    """
    ends_at = time.monotonic() + minutes * 60
    results = Results(about=about(names))
    chosen = able(names, results)
    if not chosen:
        return results
    async with kafka() as at:
        async with started(chosen[0], at, tag="warm-up.", warm_up_runs=_NEW_KAFKA):
            pass
        await _delete_topics(at[0])
        for number in range(rounds):
            for name in chosen:
                if time.monotonic() > ends_at:
                    print(f"{name}: not begun: the time is over", flush=True)
                    continue
                tag = f"{number + 1}."
                async with started(name, at, tag=tag, warm_up_runs=_NEW_SYSTEM) as generator:
                    for key, workload in workloads.items():
                        await _measure_if_able(generator, key, workload, _round(results, number), results)
                await _delete_topics(at[0])
    return results


async def _delete_topics(bootstrap: str) -> None:
    async with admin(KafkaSettings(bootstrap=bootstrap)) as client:
        await client.delete_topics([name for name in await client.list_topics() if not name.startswith("__")])


async def _measure_if_able(
    generator: Load, key: str, workload: Workload, round_name: str, results: Results
) -> None:
    refuses = generator.system.refuses
    if key in refuses:
        results.not_run[f"{generator.system.name}: {key}"] = refuses[key]
    else:
        _tell(results, await measure(generator, workload, round_name))


async def sweep(names: Sequence[str]) -> Results:
    """Latency at growing rates, until a system no longer keeps up."""
    results = Results()
    async with running(names, results) as generators:
        saturated: set[str] = set()
        for rate in SWEEP_RATES:
            workload = Workload(f"offered {rate}/s", int(rate * _SWEEP_S), 0, offered(rate))
            for generator in generators:
                name = generator.system.name
                if name in saturated:
                    continue
                row = await measure(generator, workload, _round(results, 0))
                _tell(results, row)
                if row.lost or row.latency_ms["p50"] > _SATURATED_MS:
                    saturated.add(name)
    return results


async def data_growth(names: Sequence[str], runs: int) -> Results:
    """Cost of a run with `runs` runs in Towline's data folder, beside one with 1,000: in turn, five times."""
    results = Results(about=about(names))
    async with AsyncExitStack() as stack:
        generators: list[tuple[str, Load]] = []
        for label, before in (("young", _GROWTH_YOUNG), ("old", runs)):
            bootstrap, kafka_pid = await stack.enter_async_context(kafka())
            system = Towline(bootstrap)
            await stack.enter_async_context(up(system))
            generator = await stack.enter_async_context(load(system, kafka_pid))
            generators.append((label, generator))
            await _fill(generator, before)
            print(f"{label}: {before} runs, {system.stored_kb()}", flush=True)
        for number in range(_GROWTH_ROUNDS):
            for (label, generator), before in zip(generators, (_GROWTH_YOUNG, runs), strict=True):
                workload = Workload(f"on a {label} data folder", GROWTH_BATCH, 0, at_once)
                row = await measure(generator, workload, _round(results, number))
                stored = generator.system.stored_kb()
                row.facts.update(
                    runs_before=before + number * GROWTH_BATCH,
                    **{f"stored_{place}_mb": kb / 1024 for place, kb in stored.items()},
                )
                _tell(results, row)
    return results


async def _fill(generator: Load, runs: int) -> None:
    done = 0
    while done < runs:
        await warm_up(generator, min(GROWTH_BATCH, runs - done))
        done += GROWTH_BATCH


async def soak(names: Sequence[str], seconds: float) -> Results:
    """Half of what each system does at once, steadily; one row a minute."""
    results = Results()
    async with running(names, results) as generators:
        for generator in generators:
            capacity = await measure(generator, Workload("at once", 300, 0, at_once), "capacity")
            rate = max(1.0, capacity.runs_per_s / 2)
            began = time.monotonic()
            minute = 0
            while time.monotonic() - began < seconds:
                minute += 1
                workload = Workload("soak at half load", int(rate * _SOAK_PIECE_S), 0, offered(rate))
                row = await measure(generator, workload, f"{_round(results, 0)} minute {minute}")
                own = {name: generator.system.processes[name] for name in generator.system.own}
                row.facts.update(minute=minute, memory_mb=sum(memory_mb(pid) for pid in own.values()))
                _tell(results, row)
    return results


def about(names: Sequence[str]) -> dict[str, object]:
    """When, where, what."""
    warning = installed.other_build()
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {"cores": os.cpu_count(), "system": platform.platform(), "processor": processor()},
        "versions": report.versions(),
        "systems": {name: {"about": SYSTEMS[name].about, "durable": SYSTEMS[name].durable} for name in names},
        **({"warnings": [warning]} if warning else {}),
    }


def _round(results: Results, number: int) -> str:
    return f"{results.about['at']} {number + 1}"


def _tell(results: Results, row: Measured) -> None:
    results.rows.append(row)
    latency = " / ".join(f"{ms:.1f}" for ms in row.latency_ms.values())
    print(
        f"{row.system}: {row.workload}, {row.runs}, L={row.model_ms}: {row.runs_per_s:.0f}/s, "
        f"{row.own_cpu_ms_per_run:.2f} ms = {row.in_yardsticks:.1f} yardsticks"
        f"{', ms ' + latency if latency else ''}; "
        f"lost {row.lost}, duplicate {row.duplicates}, wrong {row.wrong}",
        flush=True,
    )
