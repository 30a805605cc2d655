"""Requests through the bridge: events/s, and CPU of the bridge's process per request.

    python benchmarks/bridge.py [--requests N] [--runs N]

Starts Kafka, a scheduler and one bridge of its own. Nobody works on the runs: what is measured is the way
from the topic to the scheduler, schema check and durable start included.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from durabletask.azuremanaged.client import AsyncDurableTaskSchedulerClient

from towline.contracts.events import (
    AppRegistered,
    Event,
    EventData,
    RunRequested,
    RunTypeInfo,
)
from towline.contracts.kafka import ensure_topics
from towline.contracts.producer import EventProducer
from towline.contracts.settings import KafkaSettings
from towline.dev import KafkaPart, SchedulerPart

SCHEMA = {"type": "object", "properties": {"topic": {"type": "string"}}, "required": ["topic"]}


def cpu_s(pid: int) -> float:
    """CPU seconds of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def publish(kafka: KafkaSettings, data: list[EventData]) -> None:
    """Publish events, a thousand in flight."""
    async with EventProducer(kafka, linger_ms=10) as producer:
        for start in range(0, len(data), 1000):
            batch = data[start : start + 1000]
            await producer.send_many(
                [Event(id=f"e-{start + n}", source="bench", data=one) for n, one in enumerate(batch)]
            )


async def until_there(hub: AsyncDurableTaskSchedulerClient, run_ids: list[str]) -> None:
    """Wait until all runs are there, looking at a few of each partition."""
    for run_id in run_ids[-200:]:
        while True:
            if await hub.get_orchestration_state(run_id, fetch_payloads=False) is not None:
                break
            await asyncio.sleep(0.02)


def report(what: str, count: int, seconds: float, bridge: float, scheduler: float) -> None:
    """One line."""
    print(
        f"{what}: {count / seconds:.0f}/s, bridge {bridge / count * 1e3:.2f} ms CPU each, "
        f"scheduler {scheduler / count * 1e3:.2f} ms",
        flush=True,
    )


async def measure(
    kafka_part: KafkaPart, part: SchedulerPart, bridge_pid: int, requests: int, runs: int
) -> None:
    """Publish, wait, report; `runs` times."""
    kafka = KafkaSettings(bootstrap=kafka_part.bootstrap)
    hub = AsyncDurableTaskSchedulerClient(
        host_address=part.address, taskhub="default", token_credential=None, secure_channel=False
    )
    for number in range(runs + 1):
        count = 200 if number == 0 else requests
        run_ids = [f"run-{number}-{n}" for n in range(count)]
        data: list[EventData] = [
            RunRequested(run_id=run_id, run_type="review", input={"topic": "x" * 200}) for run_id in run_ids
        ]
        began, cpu, other = time.perf_counter(), cpu_s(bridge_pid), cpu_s(part.pid)
        await publish(kafka, data)
        await until_there(hub, run_ids)
        if number > 0:  # the first round is for warming up
            seconds = time.perf_counter() - began
            report("requests", count, seconds, cpu_s(bridge_pid) - cpu, cpu_s(part.pid) - other)
    await hub.close()


async def prepare(kafka: KafkaSettings) -> None:
    """Topics, and an app in the catalog."""
    await ensure_topics(kafka)
    run_types = [RunTypeInfo(name="review", input_schema=SCHEMA)]
    await publish(kafka, [AppRegistered(app="bench", version="1", run_types=run_types)])


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    # As by Ctrl-C: what was started is stopped.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with (
        tempfile.TemporaryDirectory() as folder,
        KafkaPart(data=Path(folder) / "kafka") as kafka_part,
        SchedulerPart(data=Path(folder) / "scheduler") as part,
    ):
        asyncio.run(prepare(KafkaSettings(bootstrap=kafka_part.bootstrap)))
        bridge = subprocess.Popen(
            [sys.executable, "-m", "towline.bridge", "--http-listen", "127.0.0.1:0"],
            env={**os.environ, **kafka_part.addresses, **part.addresses, "TOWLINE_LOG_LEVEL": "WARNING"},
        )
        try:
            asyncio.run(measure(kafka_part, part, bridge.pid, options.requests, options.runs))
        finally:
            bridge.terminate()
            bridge.wait(20)


if __name__ == "__main__":
    main()
