"""What telemetry costs: CPU of Towline's processes per run, with it on against off, in pairs.

    python -m benchmarks.telemetry [--runs N] [--pairs N]

Two sets of bridge, worker and relay share one Kafka, Valkey and scheduler. One set exports traces and metrics
by OTLP to a sink that throws them away (its CPU does not count), every run sampled, which is the default; the
other has no endpoint. The sets take turns with the same batch of runs, each a message to one agent by a model
that costs nothing, so that nothing hides the overhead. On a noisy machine only pairs can be compared: the
result is the median of the pairs' ratios.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import uuid4

from agent_framework import Agent
from agent_framework_durabletask import DurableAIAgentOrchestrationContext, DurableAIAgentWorker
from durabletask.task import OrchestrationContext, Task
from durabletask.worker import TaskHubGrpcWorker

from towline.contracts.client import TowlineClient
from towline.contracts.events import Event, RunCompleted, RunRequested
from towline.contracts.producer import EventProducer
from towline.dev import KafkaPart, SchedulerPart, ValkeyPart
from towline.dev.stack import Stack, StackPlan
from towline.testing.scripted import Rule, ScriptedChatClient

_SETTLE_S = 6.0
"""Until what a batch left behind is exported: more than the default delay of 5 s."""


def answer(context: OrchestrationContext, message: str) -> Generator[Task[Any], Any, str]:
    """One agent turn."""
    agent = DurableAIAgentOrchestrationContext(context).get_agent("Answerer")
    return (yield agent.run(message)).text


def setup_worker(worker: TaskHubGrpcWorker) -> None:
    """Register agent and orchestration."""
    client = ScriptedChatClient(
        Rule("Heat is the motion of particles: the faster they move, the hotter it is.")
    )
    DurableAIAgentWorker(worker).add_agent(Agent(client=client, name="Answerer", instructions="Answer."))
    worker.add_orchestrator(answer)


class _Sink(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def sink() -> None:
    """Take OTLP and throw it away; prints its port."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Sink)
    print(server.server_address[1], flush=True)
    server.serve_forever()


def cpu_s(pid: int) -> float:
    """CPU seconds of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Measured:
    """One set of roles, and what it used."""

    def __init__(self, stack: Stack, shared: list[int]) -> None:
        self.stack = stack
        self.pids = {part.name: part.pid or 0 for part in stack.roles}
        self.shared = shared

    def used(self) -> dict[str, float]:
        """CPU seconds by role, and of all that is shared."""
        return {name: cpu_s(pid) for name, pid in self.pids.items()} | {
            "shared": sum(cpu_s(pid) for pid in self.shared)
        }

    async def batch(self, client: TowlineClient, runs: int) -> dict[str, float]:
        """CPU milliseconds a run, by role."""
        await asyncio.sleep(_SETTLE_S)
        before = self.used()
        name = uuid4().hex[:8]
        events = [
            Event(
                id=f"{name}-{n}", source="bench", data=RunRequested(run_id=f"{name}-{n}", run_type="answer")
            )
            for n in range(runs)
        ]
        async with EventProducer(self.stack.kafka, linger_ms=5) as producer:
            await producer.send_many(events)
        left = {event.id for event in events}
        async with client.results() as results:
            async for outcome in results:
                left.discard(outcome.data.run_id)
                assert isinstance(outcome.data, RunCompleted), outcome
                if not left:
                    break
        await asyncio.sleep(_SETTLE_S)
        after = self.used()
        return {part: (after[part] - before[part]) * 1000 / runs for part in after}


async def measure(off: Measured, on: Measured, *, runs: int, pairs: int) -> None:
    async with TowlineClient(off.stack.kafka) as client_off, TowlineClient(on.stack.kafka) as client_on:
        for measured, client in ((off, client_off), (on, client_on)):
            await measured.batch(client, runs // 4)  # to warm up
        ratios: list[float] = []
        everything: list[float] = []
        print(f"{'CPU ms a run':>14}  {'bridge':>15}  {'worker':>15}  {'relay':>15}  {'all three':>15}  more")
        for number in range(pairs):
            order = [(off, client_off), (on, client_on)]
            found = {}
            for measured, client in order if number % 2 == 0 else reversed(order):
                found[measured] = await measured.batch(client, runs)
            without, with_ = found[off], found[on]
            roles = ("bridge", "worker", "relay")
            sums = [sum(one[role] for role in roles) for one in (without, with_)]
            whole = [sum(one.values()) for one in (without, with_)]
            ratios.append(sums[1] / sums[0])
            everything.append(whole[1] / whole[0])
            cells = [f"{without[role]:6.2f} → {with_[role]:6.2f}" for role in roles]
            cells.append(f"{sums[0]:6.2f} → {sums[1]:6.2f}")
            print(
                f"{'pair ' + str(number + 1):>14}  " + "  ".join(cells) + f"  {ratios[-1] - 1:+.1%}",
                flush=True,
            )
        print(
            f"telemetry on: {statistics.median(ratios) - 1:+.1%} CPU a run in bridge, worker and relay, "
            f"{statistics.median(everything) - 1:+.1%} with scheduler, Kafka and Valkey "
            f"(medians of {pairs} pairs of {runs} runs)"
        )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=400)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--sink", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.sink:
        sink()
        return
    with ExitStack() as parts:
        data = Path(parts.enter_context(tempfile.TemporaryDirectory(prefix="towline-bench-")))
        kafka = parts.enter_context(KafkaPart(data=data / "kafka"))
        valkey = parts.enter_context(ValkeyPart(data=data / "valkey"))
        scheduler = parts.enter_context(SchedulerPart(data=data / "scheduler"))
        command = [sys.executable, "-m", "benchmarks.telemetry", "--sink"]
        receiver = parts.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        parts.callback(receiver.terminate)
        assert receiver.stdout is not None
        endpoint = f"http://127.0.0.1:{receiver.stdout.readline().strip()}"
        addresses = {**kafka.addresses, **valkey.addresses, **scheduler.addresses}
        shared = [part.pid or 0 for part in (kafka, valkey, scheduler)]

        def start(name: str, settings: dict[str, str]) -> Measured:
            own = {
                "TOWLINE_KAFKA_TOPIC_PREFIX": f"{name}.",
                "TOWLINE_SCHEDULER_TASKHUB": name,
                "TOWLINE_RELAY_GROUP": f"{name}.relay",
            }
            plan = StackPlan(
                data=data / name, app="benchmarks.telemetry:setup_worker", given=addresses,
                settings=own | settings, partitions=3,
            )  # fmt: skip
            return Measured(parts.enter_context(Stack(plan).running()), shared)

        off, on = start("off", {}), start("on", {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint})
        began = time.monotonic()
        asyncio.run(measure(off, on, runs=arguments.runs, pairs=arguments.pairs))
        print(f"took {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
