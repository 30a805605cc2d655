"""The durable scheduler beside the SDK's in-memory backend: one machine, one run, the same stock worker.

``python -m benchmarks.scheduler [--short | --full] [--start-mib N] [--json FILE]``. Server, worker and client
are three processes. Each measurement alternates between the two servers, so that other load on the machine
meets both; what counts is the ratio. The client starts runs from a few threads and then waits for one run
after the other: the in-memory backend starves when many wait at once.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import grpc
from durabletask import entities, task
from durabletask.entities import EntityInstanceId
from durabletask.internal import orchestrator_service_pb2 as pb
from durabletask.internal.orchestrator_service_pb2_grpc import TaskHubSidecarServiceStub
from google.protobuf import wrappers_pb2

ROOT: Final = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:  # run as a file
    sys.path.insert(0, str(ROOT))

from tests.conformance.support import Hub, ServerProcess, cpu_s  # noqa: E402

from towline.scheduler.store.database import FILE_NAME  # noqa: E402

Turns = Any
MEMORY: Final = "in-memory"
DURABLE: Final = "towline"
HUB: Final = "bench"
COMMANDS: Final = {
    MEMORY: (sys.executable, "-m", "tests.conformance.memory_backend"),
    DURABLE: (sys.executable, "-m", "towline.scheduler"),
}


# What the worker serves.


def nothing(_: task.OrchestrationContext, value: object) -> object:
    return value


def one_activity(ctx: task.OrchestrationContext, _: object) -> Turns:
    return (yield ctx.call_activity(act, input=1))


def sequence(ctx: task.OrchestrationContext, count: int) -> Turns:
    for number in range(count):
        yield ctx.call_activity(act, input=number)


def parallel(ctx: task.OrchestrationContext, count: int) -> Turns:
    yield task.when_all([ctx.call_activity(act, input=number) for number in range(count)])


def entity_call(ctx: task.OrchestrationContext, key: str) -> Turns:
    return (yield ctx.call_entity(EntityInstanceId("tally", key), "add", 1))


def waits(ctx: task.OrchestrationContext, _: object) -> Turns:
    return (yield ctx.wait_for_external_event("end"))


def act(_: task.ActivityContext, value: int) -> int:
    return value


def tally(ctx: entities.EntityContext, amount: int) -> int:
    total = int(ctx.get_state(int, 0)) + amount
    ctx.set_state(total)
    return total


@dataclass(frozen=True, slots=True)
class Shape:
    name: str
    orchestrator: str
    input: str
    runs: int


SHAPES: Final = (
    Shape("no-op", "nothing", "null", 400),
    Shape("one activity", "one_activity", "null", 300),
    Shape("ten in sequence", "sequence", "10", 60),
    Shape("twenty in parallel", "parallel", "20", 60),
    Shape("entity call", "entity_call", '"{number}"', 200),
)


class Bench:
    """One server with one stock worker process."""

    def __init__(self, name: str, folder: Path, exits: ExitStack, starters: int = 4) -> None:
        self.name = name
        self._starters = starters
        self.server = ServerProcess(folder / name, command=COMMANDS[name])
        exits.enter_context(self.server)
        self.worker_pid = exits.enter_context(worker_process(self.server.address))
        hub = Hub(self.server, HUB)
        exits.callback(hub.close)
        self.stub: TaskHubSidecarServiceStub = hub.stub()
        self._number = 0
        self._started = f"{name}-{os.getpid()}"

    def start(self, orchestrator: str, input_json: str) -> str:
        self._number += 1
        instance = f"{self._started}-{self._number}"
        self.stub.StartInstance(
            pb.CreateInstanceRequest(
                instanceId=instance,
                name=orchestrator,
                input=wrappers_pb2.StringValue(value=input_json.replace("{number}", str(self._number % 50))),
            ),
            timeout=60,
        )
        return instance

    def wait(self, instance: str) -> None:
        answer = self.stub.WaitForInstanceCompletion(pb.GetInstanceRequest(instanceId=instance), timeout=120)
        status = answer.orchestrationState.orchestrationStatus
        if status != pb.ORCHESTRATION_STATUS_COMPLETED:
            raise RuntimeError(f"{instance} on {self.name} ended {pb.OrchestrationStatus.Name(status)}")

    def burst(self, shape: Shape, runs: int) -> Sample:
        """``runs`` at once; rates and CPU per run."""
        server, worker, began = cpu_s(self.server.pid), cpu_s(self.worker_pid), time.perf_counter()
        with ThreadPoolExecutor(self._starters) as pool:
            instances = list(pool.map(lambda _: self.start(shape.orchestrator, shape.input), range(runs)))
        for instance in instances:
            self.wait(instance)
        took = time.perf_counter() - began
        return Sample(
            rate_per_s=runs / took,
            server_ms=(cpu_s(self.server.pid) - server) * 1000 / runs,
            worker_ms=(cpu_s(self.worker_pid) - worker) * 1000 / runs,
        )

    def latencies_ms(self, shape: Shape, runs: int) -> list[float]:
        """One in flight."""
        taken = []
        for _ in range(runs):
            began = time.perf_counter()
            self.wait(self.start(shape.orchestrator, shape.input))
            taken.append((time.perf_counter() - began) * 1000)
        return taken


@dataclass(frozen=True, slots=True)
class Sample:
    rate_per_s: float
    server_ms: float
    worker_ms: float


@dataclass(slots=True)
class Report:
    machine: dict[str, object]
    shapes: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    waiters: dict[str, float] = field(default_factory=dict)
    finished: list[dict[str, float]] = field(default_factory=list)
    histories: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    start: dict[str, float] = field(default_factory=dict)
    idle: dict[str, float] = field(default_factory=dict)


@contextmanager
def worker_process(address: str) -> Iterator[int]:
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.scheduler", "--worker", address],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert process.stdout is not None
        process.stdout.readline()  # it says that it has started
        yield process.pid
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)


def serve(address: str) -> None:
    """The worker's own process: the SDK's worker as it comes, with quiet logs."""
    server = ServerProcess(Path("unused"), command=())
    server.port = int(address.rpartition(":")[2])
    hub = Hub(server, HUB)
    hub.worker(
        orchestrators=[nothing, one_activity, sequence, parallel, entity_call, waits],
        activities=[act],
        entities=[tally],
    )
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    print("started", flush=True)
    stopped.wait()
    os._exit(0)  # the worker's own stop may take half a minute


def measure_shapes(
    benches: Sequence[Bench], rounds: int, scale: float
) -> dict[str, dict[str, dict[str, float]]]:
    table: dict[str, dict[str, dict[str, float]]] = {}
    for shape in SHAPES:
        runs = max(20, int(shape.runs * scale))
        for bench in benches:
            bench.burst(shape, 20)  # warm
        samples: dict[str, list[Sample]] = {bench.name: [] for bench in benches}
        latencies: dict[str, list[float]] = {bench.name: [] for bench in benches}
        for number in range(rounds):
            for bench in benches if number % 2 == 0 else tuple(reversed(benches)):
                samples[bench.name].append(bench.burst(shape, runs))
                latencies[bench.name] += bench.latencies_ms(shape, max(10, runs // 20))
        table[shape.name] = {
            name: {
                "rate_per_s": statistics.median(sample.rate_per_s for sample in given),
                "server_ms": statistics.median(sample.server_ms for sample in given),
                "worker_ms": statistics.median(sample.worker_ms for sample in given),
                "p50_ms": statistics.median(latencies[name]),
            }
            for name, given in samples.items()
        }
        note(f"{shape.name}: {table[shape.name]}")
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
        await asyncio.sleep(3)
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


async def finish_instances(bench: Bench, first: int, last: int, payload: str) -> None:
    """Terminal instances without a worker: started under a name that nobody serves, and terminated."""
    metadata = (("taskhub", HUB),)
    async with grpc.aio.insecure_channel(bench.server.address) as channel:
        stub = TaskHubSidecarServiceStub(channel)

        async def one(number: int) -> None:
            instance = f"finished-{number}"
            await stub.StartInstance(
                pb.CreateInstanceRequest(
                    instanceId=instance,
                    name="finished",
                    input=wrappers_pb2.StringValue(value=payload),
                    scheduledStartTimestamp={"seconds": int(time.time()) + 3600},
                ),
                metadata=metadata,
                timeout=60,
            )
            await stub.TerminateInstance(
                pb.TerminateRequest(instanceId=instance), metadata=metadata, timeout=60
            )

        for start in range(first, last, 250):
            await asyncio.gather(*(one(number) for number in range(start, min(start + 250, last))))


def measure_finished(bench: Bench, steps: Sequence[int], payload: str) -> list[dict[str, float]]:
    shape = next(shape for shape in SHAPES if shape.name == "one activity")
    rows: list[dict[str, float]] = []
    there = 0
    for step in steps:
        asyncio.run(finish_instances(bench, there, step, payload))
        there = step
        bench.burst(shape, 20)
        samples = [bench.burst(shape, 200) for _ in range(3)]
        rows.append(
            {
                "finished": step,
                "rate_per_s": statistics.median(sample.rate_per_s for sample in samples),
                "server_ms": statistics.median(sample.server_ms for sample in samples),
                "p50_ms": statistics.median(bench.latencies_ms(shape, 40)),
                "file_mib": folder_mib(bench.server.data),
            }
        )
        note(f"finished: {rows[-1]}")
    return rows


def measure_histories(bench: Bench, rounds: int) -> list[dict[str, float]]:
    """Four events an activity: histories of about 10, 100 and 1,000 events."""
    rows = []
    for activities, runs in ((2, 60), (25, 8), (250, 1)):
        shape = Shape("history", "sequence", str(activities), runs)
        bench.burst(shape, 1)
        samples = [bench.burst(shape, runs) for _ in range(rounds)]
        events = 4 * activities + 4
        rows.append(
            {
                "events": events,
                "server_us_per_event": statistics.median(sample.server_ms for sample in samples)
                * 1000
                / events,
                "worker_us_per_event": statistics.median(sample.worker_ms for sample in samples)
                * 1000
                / events,
            }
        )
    note(f"histories of {bench.name}: {rows}")
    return rows


def measure_start(folder: Path, mib: int, rounds: int) -> dict[str, float]:
    """Exec to ready after a kill, by turns on a file with next to nothing in it and on one of ``mib`` MiB.

    The large file holds copies of one run that a worker finished; both have runs that wait for a worker.
    """
    servers = {"small": ServerProcess(folder / "small"), "large": ServerProcess(folder / "large")}
    for server in servers.values():
        with server, ExitStack() as exits:
            hub = Hub(server, HUB)
            exits.callback(hub.close)
            with worker_process(server.address):
                sdk = hub.client()
                sdk.wait_for_orchestration_completion(
                    sdk.schedule_new_orchestration("nothing", input="x" * 10_000), timeout=60
                )
            for _ in range(100):
                sdk.schedule_new_orchestration("waits_for_a_worker")
    multiply(servers["large"].data / FILE_NAME, mib)
    with ExitStack() as exits:
        for server in servers.values():
            server.starts_s.clear()
            server.starts_cpu_s.clear()
            exits.enter_context(server)
        for _ in range(rounds):
            for server in servers.values():
                server.restart()
        sizes = {name: folder_mib(server.data) for name, server in servers.items()}
        results: dict[str, float] = {}
        for name, server in servers.items():
            title = f"start after a kill, file of {sizes[name]:.1f} MiB"
            results[f"{title}, s"] = statistics.median(server.starts_s[1:])
            results[f"{title}, s of CPU"] = statistics.median(server.starts_cpu_s[1:])
        results[f"idle CPU with a file of {sizes['large']:.0f} MiB, percent"] = idle_percent(
            servers["large"].pid, 5
        )
    return results


def multiply(path: Path, mib: int) -> None:
    """Copy the one finished instance of a file until the file has ``mib`` MiB."""
    with sqlite3.connect(path, isolation_level=None) as connection:
        execute = connection.execute
        execute("PRAGMA synchronous=OFF")
        row, size = execute(
            "SELECT row, (SELECT sum(length(chunk)) FROM history WHERE key >> 20 = row) "
            "+ length(start) + ifnull(length(output), 0) FROM instance WHERE completed IS NOT NULL"
        ).fetchone()
        first: int = int(execute("SELECT value FROM meta WHERE key = 'next_row'").fetchone()[0])
        copies = (mib << 20) // size
        columns = ", ".join(
            {"row": "? + k", "id": "id || '-' || k"}.get(name, name)
            for _, name, *_ in execute("PRAGMA table_info(instance)")
        )
        numbers = "WITH RECURSIVE n(k) AS (SELECT 1 UNION ALL SELECT k + 1 FROM n WHERE k < ?) "
        execute("BEGIN")
        execute(
            f"{numbers}INSERT INTO instance SELECT {columns} FROM n, instance WHERE row = ?",
            (copies, first, row),
        )
        execute(
            f"{numbers}INSERT INTO history SELECT ((? + k) << 20) | (key & 0xfffff), chunk "
            "FROM n, history WHERE key >> 20 = ?",
            (copies, first, row),
        )
        execute("UPDATE meta SET value = ? WHERE key = 'next_row'", (str(first + copies + 1),))
        execute("COMMIT")
        execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()


def measure_idle(bench: Bench, seconds: float) -> float:
    """Percent of one core with one idle worker connected."""
    time.sleep(1)
    return idle_percent(bench.server.pid, seconds)


def idle_percent(pid: int, seconds: float) -> float:
    used, began = cpu_s(pid), time.perf_counter()
    time.sleep(seconds)
    return (cpu_s(pid) - used) / (time.perf_counter() - began) * 100


def sync_ms(folder: Path) -> float:
    """What the disk takes to make 8 KiB durable: every commit waits for it."""
    taken = []
    with (folder / "sync").open("wb", buffering=0) as file:
        for _ in range(100):
            file.write(b"x" * 8192)
            began = time.perf_counter()
            os.fdatasync(file.fileno())
            taken.append((time.perf_counter() - began) * 1000)
    return statistics.median(taken)


def folder_mib(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / (1 << 20)


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def markdown(report: Report) -> str:
    lines = [
        "{cores} cores, Python {python}, load {load}, fdatasync {fdatasync_ms:.2f} ms, "
        "{starters} threads start runs".format(**report.machine),
        "",
        "| shape | rate /s | in-memory | ratio | server ms/run | in-memory | ratio | p50 ms | in-memory |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in report.shapes.items():
        ours, theirs = row[DURABLE], row[MEMORY]
        lines.append(
            f"| {name} | {ours['rate_per_s']:.0f} | {theirs['rate_per_s']:.0f} "
            f"| {ours['rate_per_s'] / theirs['rate_per_s']:.2f} "
            f"| {ours['server_ms']:.2f} | {theirs['server_ms']:.2f} "
            f"| {ours['server_ms'] / theirs['server_ms']:.2f} "
            f"| {ours['p50_ms']:.1f} | {theirs['p50_ms']:.1f} |"
        )
    lines += [
        "",
        "| finished instances | rate /s | server ms/run | p50 ms | file MiB |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['finished']:,.0f} | {row['rate_per_s']:.0f} | {row['server_ms']:.2f} | {row['p50_ms']:.1f} "
        f"| {row['file_mib']:.1f} |"
        for row in report.finished
    ]
    lines += ["", "| events in a history | server us/event | in-memory |", "|---|---|---|"]
    lines += [
        f"| {ours['events']:,.0f} | {ours['server_us_per_event']:.0f} | {theirs['server_us_per_event']:.0f} |"
        for ours, theirs in zip(
            report.histories.get(DURABLE, []), report.histories.get(MEMORY, []), strict=True
        )
    ]
    lines += ["", *(f"- {name}: {value}" for name, value in report.waiters.items())]
    lines += [f"- {name}: {value:.3g}" for name, value in (*report.start.items(), *report.idle.items())]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scheduler", description=__doc__)
    parser.add_argument("--worker", metavar="ADDRESS", help=argparse.SUPPRESS)
    parser.add_argument("--short", action="store_true", help="about a minute: the shapes only, fewer runs")
    parser.add_argument(
        "--full", action="store_true", help="up to 100,000 finished instances, a file of 1 GB"
    )
    parser.add_argument(
        "--start-mib", type=int, metavar="N", help="only the start, on a generated file of N MiB (1024, say)"
    )
    parser.add_argument(
        "--starters", type=int, default=4, help="threads that start runs: each waits for the server's commit"
    )
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    if arguments.worker:
        serve(arguments.worker)
        return
    if arguments.start_mib:
        with tempfile.TemporaryDirectory(prefix="towline-bench-") as name:
            for title, value in measure_start(Path(name), arguments.start_mib, 7).items():
                print(f"- {title}: {value:.3g}")
        return
    cpus = len(os.sched_getaffinity(0))
    report = Report({"cores": cpus, "python": platform.python_version(), "load": os.getloadavg()[0]})
    with tempfile.TemporaryDirectory(prefix="towline-bench-") as name, ExitStack() as exits:
        report.machine |= {"fdatasync_ms": sync_ms(Path(name)), "starters": arguments.starters}
        benches = [Bench(backend, Path(name), exits, arguments.starters) for backend in (MEMORY, DURABLE)]
        durable = benches[1]
        report.shapes = measure_shapes(benches, *((3, 0.3) if arguments.short else (5, 1.0)))
        report.idle = {f"idle CPU, percent ({bench.name})": measure_idle(bench, 5) for bench in benches}
        if not arguments.short:
            report.histories = {bench.name: measure_histories(bench, 3) for bench in benches}
            report.waiters = asyncio.run(measure_waiters(durable, 1000))
            steps = (100, 1_000, 10_000, 100_000) if arguments.full else (100, 1_000, 10_000)
            payload = json.dumps("x" * (10_000 if arguments.full else 100))
            report.finished = measure_finished(durable, steps, payload)
            size = folder_mib(durable.server.data)
            durable.server.restart()
            report.start = {
                "start-up of an empty file, s": durable.server.starts_s[0],
                f"start-up of a file of {size:.0f} MiB after a kill, s": durable.server.starts_s[-1],
            }
    print(markdown(report))
    if arguments.json:
        arguments.json.write_text(json.dumps(asdict(report), indent=2) + "\n")


if __name__ == "__main__":
    main()
