"""The worker that both servers have: the SDK's as it comes, in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from durabletask import entities, task
from durabletask.entities import EntityInstanceId
from durabletask.worker import ConcurrencyOptions
from tests.conformance.hubs import Hub
from tests.conformance.processes import ROOT, ServerProcess

Turns = Any
HUB: Final = "bench"


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


@contextmanager
def worker_process(address: str, threads: int | None = None) -> Iterator[int]:
    """A worker, and its process id. ``threads``: its pool; default: the SDK's, four more than processors."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.scheduler.worker", address, str(threads or "")],
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


def serve(address: str, threads: int | None) -> None:
    """Work for the server at ``address`` until SIGTERM."""
    server = ServerProcess(Path("unused"), command=())
    server.port = int(address.rpartition(":")[2])
    hub = Hub(server, HUB)
    hub.worker(
        orchestrators=[nothing, one_activity, sequence, parallel, entity_call, waits],
        activities=[act],
        entities=[tally],
        concurrency=ConcurrencyOptions(maximum_thread_pool_workers=threads),
    )
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    print("started", flush=True)
    stopped.wait()
    os._exit(0)  # the worker's own stop may take half a minute


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]) if sys.argv[2] else None)
