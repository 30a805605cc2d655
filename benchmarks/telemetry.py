"""What telemetry costs: CPU of Towline's processes per run, with it on against off, in turns.

    python -m benchmarks.telemetry [--runs N] [--rounds N] [--sdk] [--against FOLDER]

Sets of bridge, worker and relay share one Kafka, Valkey and scheduler. `off` has no endpoint. `on` exports
traces and metrics by OTLP to a sink that throws them away (its CPU does not count), every run sampled, which
is the default. `sdk` does the same by OpenTelemetry's own tracer and encoder (see docs/decisions/0008), and
`against` is `off` with the code of another checkout. The sets take turns with the same batch of runs, each a
message to one agent by a model that costs nothing, so that nothing hides the overhead. On a noisy machine
only what ran within one round can be compared: the result is the median of the rounds' ratios to `off`.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import AsyncExitStack, ExitStack
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

    def __init__(self, stack: Stack, shared: dict[str, int]) -> None:
        self.stack = stack
        self.pids = {part.name: part.pid or 0 for part in stack.roles} | shared

    def used(self) -> dict[str, float]:
        """CPU seconds by process, of those that are shared too."""
        return {name: cpu_s(pid) for name, pid in self.pids.items()}

    async def batch(self, client: TowlineClient, runs: int) -> dict[str, float]:
        """CPU milliseconds a run, by role."""
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


ROLES = ("bridge", "worker", "relay", "scheduler")
BROKERS = ("kafka", "valkey")
"""They do the same work for each set, so what they use for it tells how fast the machine was meanwhile."""


async def measure(sets: dict[str, Measured], *, runs: int, rounds: int) -> None:
    """Print what each set used, round by round, and how it compares with the first one."""
    async with AsyncExitStack() as clients:
        pairs = {
            name: (measured, await clients.enter_async_context(TowlineClient(measured.stack.kafka)))
            for name, measured in sets.items()
        }
        for measured, client in pairs.values():
            await measured.batch(client, runs // 4)  # to warm up
        base, *others = pairs
        found: list[dict[str, dict[str, float]]] = []
        for number in range(rounds):
            order = list(pairs.items())
            if number % 2:
                order.reverse()
            found.append({name: await measured.batch(client, runs) for name, (measured, client) in order})
            for name, used in found[-1].items():
                cells = "  ".join(f"{part} {used[part]:6.2f}" for part in (*ROLES, *BROKERS))
                print(f"round {number + 1}  {name:8} CPU ms a run: {cells}", flush=True)
        for name in others:
            parts = {"Towline's processes": ROLES, **{role: (role,) for role in ROLES}}
            for what, which in parts.items():
                ratios = [_sum(one[name], which) / _sum(one[base], which) for one in found]
                print(f"{name} to {base}: {_told(ratios)} in {what}")
            ratios = [
                _sum(one[name], ROLES) / _sum(one[base], ROLES)
                / (_sum(one[name], BROKERS) / _sum(one[base], BROKERS))
                for one in found
            ]  # fmt: skip
            print(f"{name} to {base}: {_told(ratios)} … by what the brokers used")


def _sum(used: dict[str, float], which: tuple[str, ...]) -> float:
    return sum(used[part] for part in which)


def _told(ratios: list[float]) -> str:
    spread = ", ".join(f"{ratio - 1:+.1%}" for ratio in ratios)
    return f"{statistics.median(ratios) - 1:+.1%} ({spread})"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sdk", action="store_true", help="a set that has OpenTelemetry's own tracer")
    parser.add_argument("--against", help="a checkout of Towline whose code another set has")
    parser.add_argument("--sink", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.sink:
        sink()
        return
    # As by Ctrl-C: what was started is stopped.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
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
        shared = {"kafka": kafka.pid or 0, "valkey": valkey.pid or 0, "scheduler": scheduler.pid or 0}

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

        exporting = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint}
        sets = {"off": start("off", {}), "on": start("on", exporting)}
        if arguments.sdk:
            # Any limit, here the default one, makes the SDK's own tracer and encoder be used.
            sets["sdk"] = start("sdk", exporting | {"OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": "128"})
        if arguments.against:
            other = [str(Path(arguments.against, folder)) for folder in ("contracts", "services")]
            sets["against"] = start("against", {"PYTHONPATH": os.pathsep.join(other)})
        began = time.monotonic()
        asyncio.run(measure(sets, runs=arguments.runs, rounds=arguments.rounds))
        print(f"took {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
