"""One server with its worker, and what a burst of runs costs there."""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Final, TypeVar

from benchmarks.scheduler.worker import HUB, worker_process
from durabletask.internal import orchestrator_service_pb2 as pb
from durabletask.internal.orchestrator_service_pb2_grpc import TaskHubSidecarServiceStub
from google.protobuf import wrappers_pb2
from tests.conformance.hubs import Hub
from tests.conformance.processes import ServerProcess, cpu_s

T = TypeVar("T")

MEMORY: Final = "in-memory"
DURABLE: Final = "towline"
COMMANDS: Final = {
    MEMORY: (sys.executable, "-m", "tests.conformance.memory_backend"),
    DURABLE: (sys.executable, "-m", "towline.scheduler"),
}


@dataclass(frozen=True, slots=True)
class Shape:
    """Runs of one kind. ``{number}`` in the input becomes a number below 50."""

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


@dataclass(frozen=True, slots=True)
class Sample:
    """A burst of runs: their rate, and milliseconds of CPU a run in each of the three processes."""

    rate_per_s: float
    server_ms: float
    worker_ms: float
    client_ms: float
    cores: float
    """CPU that the three used, as a number of cores: what is missing was waited, or other programs had it."""


def median(samples: Sequence[Sample]) -> Sample:
    """The median of each figure."""
    return Sample(*(statistics.median(column) for column in zip(*map(astuple, samples), strict=True)))


class Bench:
    """One server with one stock worker process.

    ``data``: folder of the server, which may have a file. ``threads``: of the worker, see `worker_process`.
    """

    def __init__(
        self, name: str, data: Path, exits: ExitStack, starters: int = 4, threads: int | None = None
    ) -> None:
        self.name = name
        self._starters = starters
        self.server = ServerProcess(data, command=COMMANDS[name])
        exits.enter_context(self.server)
        self.worker_pid = exits.enter_context(worker_process(self.server.address, threads))
        hub = Hub(self.server, HUB)
        exits.callback(hub.close)
        self.stub: TaskHubSidecarServiceStub = hub.stub()
        self._number = 0
        self._started = f"{name}-{os.getpid()}"

    def start(self, orchestrator: str, input_json: str) -> str:
        """Start a run and return its id."""
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
        """Wait until a run has completed."""
        answer = self.stub.WaitForInstanceCompletion(pb.GetInstanceRequest(instanceId=instance), timeout=120)
        status = answer.orchestrationState.orchestrationStatus
        if status != pb.ORCHESTRATION_STATUS_COMPLETED:
            raise RuntimeError(f"{instance} on {self.name} ended {pb.OrchestrationStatus.Name(status)}")

    def burst(self, shape: Shape, runs: int) -> Sample:
        """``runs`` at once. The client starts them from a few threads and waits for one after the other.

        (The in-memory backend starves when many wait at once.)
        """
        before, began = self._cpu_s(), time.perf_counter()
        with ThreadPoolExecutor(self._starters) as pool:
            instances = list(pool.map(lambda _: self.start(shape.orchestrator, shape.input), range(runs)))
        for instance in instances:
            self.wait(instance)
        took = time.perf_counter() - began
        used = [after - before for after, before in zip(self._cpu_s(), before, strict=True)]
        return Sample(runs / took, *(seconds * 1000 / runs for seconds in used), cores=sum(used) / took)

    def _cpu_s(self) -> tuple[float, float, float]:
        return cpu_s(self.server.pid), cpu_s(self.worker_pid), time.process_time()

    def latencies_ms(self, shape: Shape, runs: int) -> list[float]:
        """One in flight."""
        taken = []
        for _ in range(runs):
            began = time.perf_counter()
            self.wait(self.start(shape.orchestrator, shape.input))
            taken.append((time.perf_counter() - began) * 1000)
        return taken


def in_turn(things: Sequence[T], number: int) -> Sequence[T]:
    """An order that changes from round to round: drift of the machine meets all alike."""
    return things if number % 2 == 0 else tuple(reversed(things))


def idle_percent(pid: int, seconds: float) -> float:
    """Percent of one core that a process uses while nothing is asked of it."""
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
    """Size of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / (1 << 20)


def note(text: str) -> None:
    """Tell how far it is."""
    print(text, file=sys.stderr, flush=True)
