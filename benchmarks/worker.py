"""What a worker's turns cost, without any transport: a chain of activities, replayed and gone on with.

    python benchmarks/worker.py [--repeat 5]

A run of n sequential activities takes n + 1 turns. By replay each turn runs through the whole history; kept
between its turns, through what is new. Three ways take turns within each repetition, and the median of the
ratios is told: the SDK's own worker with the bare code, Towline's host replaying always, and Towline's host
as it comes (sampled replay). Every run's result is checked.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import statistics
import sys
import time
from collections.abc import Callable, Generator
from typing import Any

import durabletask.internal.helpers as ph
import durabletask.internal.orchestrator_service_pb2 as pb
from durabletask.azuremanaged.worker import DurableTaskSchedulerWorker

from towline.contracts.durable import RunEnvelope, wrap_input
from towline.worker.dispatcher import Keeper, KeeperOptions
from towline.worker.outlet import Outlet
from towline.worker.worker import TowlineWorker

LENGTHS = (10, 100, 300)
Turn = Callable[[pb.OrchestratorRequest], pb.OrchestratorResponse]


def chain(context: Any, length: int) -> Generator[Any, Any, int]:
    """So many activities, one after the other."""
    total = 0
    for number in range(length):
        total += yield context.call_activity("add", input=number)
    return total


class _Nobody:
    async def send_many(self, events: Any) -> None:
        raise AssertionError(f"turns are carried out, nothing is sent: {events}")


class _Stub:
    def __init__(self) -> None:
        self.response = pb.OrchestratorResponse()

    def CompleteOrchestratorTask(self, response: pb.OrchestratorResponse) -> None:  # noqa: N802
        self.response = response


def _connection() -> dict[str, Any]:
    return {
        "host_address": "127.0.0.1:1",
        "taskhub": "default",
        "token_credential": None,
        "secure_channel": False,
    }


def bare() -> Turn:
    """The SDK's worker."""
    worker = DurableTaskSchedulerWorker(**_connection())
    worker.add_orchestrator(chain)

    def turn(request: pb.OrchestratorRequest) -> pb.OrchestratorResponse:
        stub = _Stub()
        worker._execute_orchestrator(request, stub, "token")  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
        return stub.response

    return turn


def towline(replay: Any) -> Turn:
    """Towline's host."""
    outlet = Outlet(_Nobody(), asyncio.new_event_loop())
    worker = TowlineWorker(outlet=outlet, source="bench", **_connection())
    worker.add_orchestrator(chain)
    keeper = Keeper(worker, KeeperOptions(replay=replay))

    def turn(request: pb.OrchestratorRequest) -> pb.OrchestratorResponse:
        carried = keeper.carry_out(worker.begin_turn(request), request, "token")
        keeper.keep(request, carried, time.monotonic())
        return carried.answer.message

    return turn


def run(turn: Turn, length: int, value: Any, name: str) -> float:
    """CPU milliseconds of one run's turns, parsing of the requests included."""
    past: list[pb.HistoryEvent] = []
    new = [
        ph.new_orchestrator_started_event(),
        ph.new_execution_started_event("chain", name, json.dumps(value)),
    ]
    spent = 0.0
    while True:
        wire = pb.OrchestratorRequest(instanceId=name, pastEvents=past, newEvents=new).SerializeToString()
        began = time.thread_time()
        response = turn(pb.OrchestratorRequest.FromString(wire))
        spent += time.thread_time() - began
        (action,) = response.actions
        if action.HasField("completeOrchestration"):
            result = json.loads(action.completeOrchestration.result.value)
            assert result == sum(range(length)), f"the run returned {result}"
            return spent * 1000
        task = action.scheduleTask
        past += [
            *new,
            ph.new_task_scheduled_event(action.id, task.name, task.input.value),
            ph.new_orchestrator_completed_event(),
        ]
        new = [ph.new_orchestrator_started_event(), ph.new_task_completed_event(action.id, task.input.value)]


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeat", type=int, default=5, help="repetitions of each (default 5)")
    repeat: int = parser.parse_args().repeat
    logging.disable(logging.WARNING)
    ways = {"bare SDK": bare(), "replayed": towline("always"), "as it comes": towline("sampled")}
    costs: dict[tuple[str, int], list[float]] = {}
    for repetition in range(repeat):
        for length in LENGTHS:
            for way, turn in ways.items():
                name = f"{way}-{length}-{repetition}"
                envelope = RunEnvelope(run_id="run", run_type="chain")
                value: Any = length if way == "bare SDK" else wrap_input(envelope, length)
                costs.setdefault((way, length), []).append(run(turn, length, value, name) / length)
    print("CPU ms per activity, median; in brackets: times that of a run of 10, median of paired ratios")
    for way in ways:
        cells: list[str] = []
        for length in LENGTHS:
            pairs = zip(costs[way, length], costs[way, LENGTHS[0]], strict=True)
            ratio = statistics.median(one / short for one, short in pairs)
            cells.append(f"{length}: {statistics.median(costs[way, length]):.3f} ({ratio:.2f})")
        print(f"{way:12} " + "   ".join(cells))
    return 0


if __name__ == "__main__":
    sys.exit(main())
