"""The workloads: what is asked for, and what is measured meanwhile."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from benchmarks.end_to_end.job import message
from benchmarks.end_to_end.load import Load
from benchmarks.end_to_end.processes import PeakMemory, cpu_ms, machine_busy_ms, memory_mb
from benchmarks.end_to_end.results import Measured, percentiles
from benchmarks.end_to_end.systems.base import Kind, Message, System
from benchmarks.end_to_end.yardstick import yardstick_ms

KAFKA: Final = "kafka"
_SETTLE_S: Final = 2.0
"""After the last answer: duplicates, and work that the answers did not wait for, come within."""
_WAITING_S: Final = 10.0
"""How long the CPU of waiting approvals is measured."""


@dataclass(frozen=True, slots=True)
class Work:
    """What a workload found out by itself."""

    seconds: float
    latencies: list[float] = field(default_factory=list[float])
    facts: dict[str, float] = field(default_factory=dict[str, float])


@dataclass(frozen=True, slots=True)
class Workload:
    """So many runs, asked for in some way."""

    name: str
    runs: int
    model_ms: int
    do: Callable[[Load, Mapping[str, str]], Awaitable[Work]]


async def warm_up(generator: Load, count: int = 50) -> None:
    """Imports, connections and caches are paid for before anything is measured.

    Raises:
        RuntimeError: An answer is missing, wrong, or came twice: nothing worth measuring.
    """
    messages = {f"warm-{time.time_ns()}-{number}": message(0, number) for number in range(count)}
    await generator.publish(_requests(generator.system, "answer", messages))
    await generator.answered(messages)
    if any(found := generator.check(messages)):
        raise RuntimeError(f"{generator.system.name}: warming up: lost, duplicate, wrong: {found}")


async def one_in_flight(generator: Load, messages: Mapping[str, str]) -> Work:
    """One run after the other, from handing the request over to reading the outcome."""
    latencies: list[float] = []
    began = time.perf_counter()
    for run_id, text in messages.items():
        request = generator.system.request(run_id, "answer", text)
        asked_at = time.perf_counter()
        await generator.publish([request])
        await generator.answered([run_id])
        latencies.append((generator.answered_at(run_id) or float("inf")) - asked_at)
    return Work(time.perf_counter() - began, latencies)


async def at_once(generator: Load, messages: Mapping[str, str]) -> Work:
    """All requests at once."""
    requests = _requests(generator.system, "answer", messages)
    began = time.perf_counter()
    await generator.publish(requests)
    await generator.answered(messages)
    return Work(_until_last(generator, messages, began))


async def approvals(generator: Load, messages: Mapping[str, str]) -> Work:
    """All requests at once; when all wait for their approval, all decisions at once."""
    requests = _requests(generator.system, "approved_answer", messages)
    async with generator.deciding():
        began = time.perf_counter()
        await generator.publish(requests)
        asked = await generator.asked(messages)
        await generator.publish([generator.system.decide(*pair) for pair in asked.items()])
        await generator.answered(messages)
    return Work(_until_last(generator, messages, began))


async def waiting_approvals(generator: Load, messages: Mapping[str, str]) -> Work:
    """As `approvals`, but nothing is decided for a while; the time is that of resuming."""
    system = generator.system
    before = await asyncio.to_thread(system.stored_kb)
    async with generator.deciding():
        await generator.publish(_requests(system, "approved_answer", messages))
        asked = await generator.asked(messages)
        await asyncio.sleep(_SETTLE_S)
        waiting = await cores(system, _WAITING_S)
        stored = await asyncio.to_thread(system.stored_kb)
    # From here on outcomes are all that is waited for.
    used_ms, began = _own_cpu_ms(system), time.perf_counter()
    await generator.publish([system.decide(*pair) for pair in asked.items()])
    await generator.answered(messages)
    facts = {f"waiting_{place}_kb": (kb - before[place]) / len(messages) for place, kb in stored.items()}
    facts["waiting_cores"] = waiting
    facts["resuming_ms"] = (_own_cpu_ms(system) - used_ms) / len(messages)
    return Work(_until_last(generator, messages, began), facts=facts)


def offered(rate: float) -> Callable[[Load, Mapping[str, str]], Awaitable[Work]]:
    """Requests at a steady `rate` a second, whatever the system makes of it.

    A request's latency counts from when it was due, so that a generator that falls behind hides nothing.
    """

    async def do(generator: Load, messages: Mapping[str, str]) -> Work:
        began = time.perf_counter()
        due = {run_id: began + number / rate for number, run_id in enumerate(messages)}
        waiting = list(messages.items())
        while waiting:
            now = time.perf_counter()
            ready = [pair for pair in waiting if due[pair[0]] <= now]
            if ready:
                waiting = waiting[len(ready) :]
                await generator.publish(_requests(generator.system, "answer", dict(ready)))
            else:
                await asyncio.sleep(due[waiting[0][0]] - now)
        await generator.answered(messages)
        latencies = [
            (generator.answered_at(run_id) or float("inf")) - due_at for run_id, due_at in due.items()
        ]
        return Work(_until_last(generator, messages, began), latencies, {"offered_per_s": rate})

    return do


async def cores(system: System, seconds: float) -> float:
    """Cores that the system's own processes use together over the next `seconds`."""
    before_ms, began = _own_cpu_ms(system), time.perf_counter()
    await asyncio.sleep(seconds)
    return (_own_cpu_ms(system) - before_ms) / 1000 / (time.perf_counter() - began)


def _own_cpu_ms(system: System) -> float:
    return sum(cpu_ms(system.processes[name]) for name in system.own)


def memory_at_rest(system: System) -> dict[str, float]:
    """Megabytes by process."""
    return {name: memory_mb(pid) for name, pid in system.processes.items()}


async def measure(generator: Load, workload: Workload, round_name: str) -> Measured:
    """Do `workload` once and say what it took."""
    system = generator.system
    tag = f"{workload.name.replace(' ', '-').replace('/', '-')}-{time.time_ns()}"
    messages = {f"{tag}-{number}": message(workload.model_ms, number) for number in range(workload.runs)}
    processes = {**system.processes, KAFKA: generator.kafka_pid}
    yardstick = await asyncio.to_thread(yardstick_ms)
    before = {name: cpu_ms(pid) for name, pid in processes.items()}
    busy_before, clock_before = machine_busy_ms(), time.perf_counter()
    with PeakMemory(lambda: processes, together=system.own) as memory:
        work = await workload.do(generator, messages)
        await asyncio.sleep(_SETTLE_S)
    used = {name: cpu_ms(pid) - before[name] for name, pid in processes.items()}
    elapsed_ms = (time.perf_counter() - clock_before) * 1000
    busy_ms = machine_busy_ms() - busy_before
    yardstick = (yardstick + await asyncio.to_thread(yardstick_ms)) / 2
    lost, duplicates, wrong = generator.check(messages)
    generator.forget(messages)
    return Measured(
        workload=workload.name,
        system=system.name,
        runs=workload.runs,
        model_ms=workload.model_ms,
        seconds=work.seconds,
        lost=lost,
        duplicates=duplicates,
        wrong=wrong,
        cpu_ms_per_run={name: ms / workload.runs for name, ms in used.items()},
        own_cpu_ms_per_run=sum(used[name] for name in system.own) / workload.runs,
        peak_mb=memory.peak_mb,
        peak_together_mb=memory.together_mb,
        load=os.getloadavg()[0],
        yardstick_ms=yardstick,
        others_cores=max(0.0, busy_ms - sum(used.values())) / elapsed_ms,
        round=round_name,
        latency_ms=percentiles(work.latencies),
        facts=work.facts,
    )


def _until_last(generator: Load, messages: Iterable[str], began: float) -> float:
    """Seconds until the last answer was read; waiting for lost ones does not count."""
    return max((generator.answered_at(run_id) or began for run_id in messages), default=began) - began or 1e-9


def _requests(system: System, kind: Kind, messages: Mapping[str, str]) -> list[Message]:
    return [system.request(run_id, kind, text) for run_id, text in messages.items()]
