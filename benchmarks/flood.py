"""A flood of requests: does memory stay bounded, does a decision in the middle of it have to wait?

    python benchmarks/flood.py [--requests 20000] [--limit-s 1200] [--out FOLDER]

Runs that wait for an approval are started first. Then all requests are published as fast as Kafka takes
them, and while they are worked off, one after the other of the waiting runs is approved. Told are: the peak
memory of each process, the delay from a decision to its run's outcome, before the flood and in it, and
whether every request was answered. Exits with 1 if one was not, within the limit.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any
from uuid import uuid4

from durabletask.azuremanaged.client import DurableTaskSchedulerClient
from durabletask.history import EventRaisedEvent, OrchestratorStartedEvent

if __name__ == "__main__":  # `python benchmarks/flood.py` puts its own folder on the path, not the root
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.end_to_end.processes import PeakMemory, memory_mb

from towline.contracts import Event, RunRequested, TowlineClient
from towline.contracts.producer import EventProducer
from towline.dev.stack import Stack, StackPlan

BATCH = 500
QUIET_APPROVALS = 5
APPROVALS = 15


def small(_: Any, value: Any) -> Any:
    """What is flooded with: one turn."""
    return value


def asks(ctx: Any, _: Any) -> Any:
    """Waits for somebody's decision, then takes one more step."""
    decision = yield ctx.wait_for_external_event("HumanApproval")
    return decision["approved"]


def setup_worker(worker: Any) -> None:
    """What ``towline worker --app benchmarks.flood:setup_worker`` hosts."""
    worker.add_orchestrator(small)
    worker.add_orchestrator(asks)


@dataclass
class Flood:
    """What was measured. Times in seconds, memory in MiB."""

    requests: int
    published_s: float = 0.0
    answered: int = 0
    repeats: int = 0
    answered_s: float = 0.0
    quiet_delays_s: list[float] = field(default_factory=list)
    flood_delays_s: list[float] = field(default_factory=list)
    left_when_decided: list[int] = field(default_factory=list)
    decided_at: list[datetime] = field(default_factory=list)
    stages: list[dict[str, float]] = field(default_factory=list)
    before_mb: dict[str, float] = field(default_factory=dict)
    peak_mb: dict[str, float] = field(default_factory=dict)

    def markdown(self) -> str:
        """For docs/performance.md."""
        rate = self.answered / max(self.answered_s, 0.001)
        lines = [
            f"{self.requests} requests published in {self.published_s:.1f} s;",
            f"{self.answered} answered in {self.answered_s:.0f} s ({rate:.0f}/s), {self.repeats} repeats.",
            "",
            "| decision to outcome, s | n | median | worst |",
            "|---|---|---|---|",
        ]
        for name, delays in (("before the flood", self.quiet_delays_s), ("in it", self.flood_delays_s)):
            if delays:
                lines.append(f"| {name} | {len(delays)} | {median(delays):.2f} | {max(delays):.2f} |")
        if self.stages:
            lines += ["", "| decided with so many left | raised, s | handed out | turn done | published |"]
            lines += ["|---|---|---|---|---|"]
            lines += [
                f"| {left} | {' | '.join(str(value) for value in stage.values())} |"
                for left, stage in zip(self.left_when_decided, self.stages, strict=False)
            ]
        lines += ["", "| process | before, MiB | peak, MiB |", "|---|---|---|"]
        lines += [
            f"| {name} | {self.before_mb.get(name, 0):.0f} | {peak:.0f} |"
            for name, peak in self.peak_mb.items()
        ]
        return "\n".join([*lines, ""])


async def flood(stack: Stack, requests: int, limit_s: float) -> Flood:
    """Do it on a running stack."""
    measured = Flood(requests)
    async with TowlineClient(stack.kafka, source="benchmarks/flood") as client:
        waiting = [await client.start("asks") for _ in range(QUIET_APPROVALS + APPROVALS)]
        for run in waiting:
            await _asked(run)
        for _ in range(QUIET_APPROVALS):
            measured.quiet_delays_s.append(await _approve(waiting.pop()))
        measured.before_mb = {part.name: memory_mb(part.pid) for part in stack.parts}
        wanted = {f"flood-{number}-{uuid4().hex[:8]}" for number in range(requests)}
        seen: set[str] = set()
        began = time.monotonic()
        counting = asyncio.create_task(_count(client, wanted, seen, measured, began))
        deciding = asyncio.create_task(_decide(waiting, seen, measured))
        await _publish(stack, sorted(wanted))
        measured.published_s = time.monotonic() - began
        await asyncio.wait({counting}, timeout=limit_s)
        deciding.cancel()
        counting.cancel()
        await asyncio.gather(deciding, counting, return_exceptions=True)
        measured.answered = len(seen)
        decided = waiting[: len(measured.flood_delays_s)]
        measured.stages = await asyncio.to_thread(stages, stack, decided, measured.decided_at)
    return measured


async def _publish(stack: Stack, run_ids: Sequence[str]) -> None:
    async with EventProducer(stack.kafka, client_id="flood", linger_ms=5) as producer:
        for begin in range(0, len(run_ids), BATCH):
            await producer.send_many(
                [
                    Event(
                        id=run_id,
                        source="benchmarks/flood",
                        data=RunRequested(run_id=run_id, run_type="small", input={"n": begin}),
                    )
                    for run_id in run_ids[begin : begin + BATCH]
                ]
            )


async def _count(
    client: TowlineClient, wanted: set[str], seen: set[str], measured: Flood, began: float
) -> None:
    """Until each wanted run has its outcome."""
    next_line = 0.0
    async for outcome in client.results(remember=1):
        run_id = outcome.data.run_id
        if run_id not in wanted:
            continue
        measured.repeats += run_id in seen
        seen.add(run_id)
        measured.answered_s = time.monotonic() - began
        if measured.answered_s > next_line or len(seen) == len(wanted):
            next_line = measured.answered_s + 10
            print(f"{measured.answered_s:6.0f} s  {len(seen)} answered", flush=True)
        if len(seen) == len(wanted):
            return


async def _decide(waiting: list[Any], seen: set[str], measured: Flood) -> None:
    """A decision each time that another part of the flood was worked off."""
    step = measured.requests / (APPROVALS + 1)
    for number, run in enumerate(list(waiting)):
        while len(seen) < number * step:  # noqa: ASYNC110 - the flood's progress is no event
            await asyncio.sleep(0.05)
        left = measured.requests - len(seen)
        measured.decided_at.append(datetime.now(UTC))
        delay_s = await _approve(run)
        measured.left_when_decided.append(left)
        measured.flood_delays_s.append(delay_s)
        print(f"        decided with {left} left: {delay_s:.2f} s", flush=True)


async def _asked(run: Any) -> None:
    async for event in run.events():
        if event.type == "towline.approval.requested.v1":
            return


async def _approve(run: Any) -> float:
    began = time.monotonic()
    await run.approve("HumanApproval")
    assert await run.result() is True
    return time.monotonic() - began


def stages(stack: Stack, runs: Sequence[Any], decided_at: Sequence[datetime]) -> list[dict[str, float]]:
    """Where each decision's time went: until it was raised, handed out, and its turn was done; in seconds."""
    client = DurableTaskSchedulerClient(
        host_address=stack.scheduler_address, taskhub="default", token_credential=None, secure_channel=False
    )
    found: list[dict[str, float]] = []
    for run, decided in zip(runs, decided_at, strict=False):
        history = client.get_orchestration_history(run.run_id)
        raised = next(at for at, event in enumerate(history) if isinstance(event, EventRaisedEvent))
        started = [event for event in history[: raised + 1] if isinstance(event, OrchestratorStartedEvent)][
            -1
        ]
        outcome = run._watched.outcome  # noqa: SLF001 - what the client has seen
        times = [
            decided,
            history[raised].timestamp.replace(tzinfo=UTC),
            started.timestamp.replace(tzinfo=UTC),
            outcome.data.finished_at,
            outcome.time,
        ]
        names = ("raised", "handed_out", "turn_done", "published")
        found.append(
            {
                name: round((after - before).total_seconds(), 2)
                for name, before, after in zip(names, times, times[1:], strict=False)
            }
        )
    return found


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--limit-s", type=float, default=1_200)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    # As by Ctrl-C: what was started is stopped.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with tempfile.TemporaryDirectory(prefix="towline-flood-") as folder:
        plan = StackPlan(data=Path(folder), app="benchmarks.flood:setup_worker")
        with Stack(plan).running() as stack:
            processes = {part.name: part.pid for part in stack.parts}
            with PeakMemory(lambda: processes) as memory:
                measured = asyncio.run(flood(stack, arguments.requests, arguments.limit_s))
            measured.peak_mb = memory.peak_mb
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "flood.json").write_text(json.dumps(asdict(measured), indent=1, default=str))
    (arguments.out / "flood.md").write_text(measured.markdown())
    print(measured.markdown())
    return 0 if measured.answered == measured.requests else 1


if __name__ == "__main__":
    sys.exit(main())
