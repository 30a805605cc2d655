"""Kill the scheduler again and again under mixed load from stock clients and workers, then count.

``python -m tests.chaos.scheduler_kill_loop --kills 100 --runs 500``. The verdict is an invariant query over
what the server kept: every run finished with the right result, each scheduled activity has one recorded
result, every entity counter is exact, nothing is stuck.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import grpc
from durabletask import entities, task
from durabletask.client import OrchestrationStatus, TaskHubGrpcClient
from durabletask.entities import EntityInstanceId
from durabletask.internal import orchestrator_service_pb2 as pb
from google.protobuf import wrappers_pb2
from tests.conformance.hubs import Hub
from tests.conformance.processes import ServerProcess
from tests.conformance.support import retrying
from tests.waiting import eventually

Turns = Any
SHAPES: Final = ("sequence", "parallel", "parent", "waiting", "calls", "locking", "generations")
COUNTERS: Final = 8


@dataclass(frozen=True, slots=True)
class Plan:
    """What is done; the same seed gives the same programs and pauses, not the same interleaving."""

    seed: int
    kills: int
    runs: int
    pause_s: tuple[float, float] = (0.5, 3.0)
    limit_s: float = 1800.0


@dataclass(slots=True)
class Verdict:
    """Empty ``problems`` means that the server kept its word."""

    plan: Plan
    kills: int = 0
    took_s: float = 0.0
    slowest_start_s: float = 0.0
    retried_activities: int = 0
    problems: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        head = (
            f"seed {self.plan.seed}: {self.plan.runs} runs, {self.kills} kills, {self.took_s:.0f} s, "
            f"slowest start {self.slowest_start_s:.2f} s, {self.retried_activities} activities run again"
        )
        return "\n".join([head, *(f"  {problem}" for problem in self.problems[:40])])


executions: Counter[str] = Counter()
executions_lock = threading.Lock()


def work(ctx: task.ActivityContext, number: int) -> int:
    """May run more than once over a kill; what is recorded must count once."""
    with executions_lock:
        executions[f"{ctx.orchestration_id}/{ctx.task_id}"] += 1
    threading.Event().wait(0.02)
    return number + 1


def counter(ctx: entities.EntityContext, amount: int) -> int:
    total = int(ctx.get_state(int, 0)) + amount
    ctx.set_state(total)
    return total


def sequence(ctx: task.OrchestrationContext, number: int) -> Turns:
    for _ in range(5):
        number = yield ctx.call_activity(work, input=number)
    return number


def parallel(ctx: task.OrchestrationContext, number: int) -> Turns:
    return sum((yield task.when_all([ctx.call_activity(work, input=number + step) for step in range(6)])))


def parent(ctx: task.OrchestrationContext, number: int) -> Turns:
    children = [ctx.call_sub_orchestrator(sequence, input=number + step) for step in range(2)]
    results = yield task.when_all(children)
    yield ctx.create_timer(timedelta(seconds=0.5))
    return sum(results)


def waiting(ctx: task.OrchestrationContext, number: int) -> Turns:
    event = ctx.wait_for_external_event("add")
    yield ctx.create_timer(timedelta(seconds=1))
    return number + (yield event)


def calls(ctx: task.OrchestrationContext, number: int) -> Turns:
    entity = EntityInstanceId("counter", str(number % COUNTERS))
    for _ in range(3):
        yield ctx.call_entity(entity, "add", 1)
    ctx.signal_entity(entity, "add", 1)
    return number


def locking(ctx: task.OrchestrationContext, number: int) -> Turns:
    pair = [EntityInstanceId("counter", str(key % COUNTERS)) for key in (number, number + 1)]
    with (yield ctx.lock_entities(pair)):
        before = yield ctx.call_entity(pair[0], "add", 1)
        middle = yield ctx.call_activity(work, input=before)
        after = yield ctx.call_entity(pair[0], "add", 1)
        yield ctx.call_entity(pair[1], "add", 1)
    return after - middle  # 0 unless somebody came between


def generations(ctx: task.OrchestrationContext, state: list[int]) -> Turns:
    left, number = state
    number = yield ctx.call_activity(work, input=number)
    if left > 0:
        ctx.continue_as_new([left - 1, number])
        return None
    return number


ORCHESTRATORS: Final = (sequence, parallel, parent, waiting, calls, locking, generations)


def expected_result(shape: str, number: int) -> int:
    return {
        "sequence": number + 5,
        "parallel": 6 * number + 21,
        "parent": 2 * number + 11,
        "waiting": number + 1000,
        "calls": number,
        "locking": 0,
        "generations": number + 4,
    }[shape]


def expected_counters(programs: list[str], signals: list[int]) -> Counter[int]:
    expected: Counter[int] = Counter()
    for number, shape in enumerate(programs):
        if shape == "calls":
            expected[number % COUNTERS] += 4
        elif shape == "locking":
            expected[number % COUNTERS] += 2
            expected[(number + 1) % COUNTERS] += 1
    for key in signals:
        expected[key] += 1
    return expected


class KillLoop:
    """One campaign against one server."""

    def __init__(self, plan: Plan, folder: Path, *, say: Callable[[str], None] = print) -> None:
        self.plan = plan
        self.server = ServerProcess(folder / "data")
        self.hub = Hub(self.server, "chaos")
        self.say = say
        self.random = random.Random(plan.seed)
        self.programs = [self.random.choice(SHAPES) for _ in range(plan.runs)]
        self.signals = [self.random.randrange(COUNTERS) for _ in range(plan.runs)]
        self.verdict = Verdict(plan)

    def run(self) -> Verdict:
        began = time.monotonic()
        executions.clear()
        self.say(f"seed {self.plan.seed}")
        self.server.start()
        try:
            for _ in range(2):
                self.hub.worker(orchestrators=ORCHESTRATORS, activities=[work], entities=[counter])
            killer = threading.Thread(target=self._kill, name="killer")
            killer.start()
            try:
                self._load(began)
            finally:
                killer.join()
            self._check_entities()
            self._check_histories()
        finally:
            self.hub.close()
            self.server.stop()
        self.verdict.took_s = time.monotonic() - began
        self.verdict.slowest_start_s = max(self.server.starts_s)
        self.verdict.retried_activities = sum(1 for times in executions.values() if times > 1)
        return self.verdict

    def _kill(self) -> None:
        pauses = random.Random(self.plan.seed + 1)
        while self.verdict.kills < self.plan.kills:
            threading.Event().wait(pauses.uniform(*self.plan.pause_s))
            self.server.kill()
            try:
                self.server.start()
            except AssertionError as error:
                problem = f"did not come back after kill {self.verdict.kills + 1}: {error}"
                self.verdict.problems.append(problem)
                self.say(problem)  # at once: whoever still asks the server raises before the verdict is told
                return
            self.verdict.kills += 1
            if self.verdict.kills % 10 == 0:
                self.say(f"{self.verdict.kills} kills")

    def _load(self, began: float) -> None:
        """Spread the starts over the kills, so that each kill finds work of every age."""
        sdk, stub = self.hub.client(), self.hub.stub()
        spread_s = self.plan.kills * (sum(self.plan.pause_s) / 2 + 0.5) * 0.9

        def one(number: int) -> None:
            delay = began + spread_s * number / self.plan.runs - time.monotonic()
            threading.Event().wait(max(0.0, delay))
            shape = self.programs[number]
            self._start(sdk, number, shape)
            request = pb.SignalEntityRequest(
                instanceId=f"@counter@{self.signals[number]}",
                name="add",
                requestId=f"signal-{number}",
                input=wrappers_pb2.StringValue(value="1"),
            )
            retrying(lambda: stub.SignalEntity(request, timeout=20))
            remaining = self.plan.limit_s - (time.monotonic() - began)
            self._finish(sdk, number, shape, max(5.0, remaining))

        with ThreadPoolExecutor(min(self.plan.runs, 64)) as pool:
            for running in [pool.submit(one, number) for number in range(self.plan.runs)]:
                running.result()

    def _start(self, sdk: TaskHubGrpcClient, number: int, shape: str) -> None:
        """A start that was answered UNAVAILABLE may have happened: then the id exists on the second try."""
        given: Any = [3, number] if shape == "generations" else number
        name = f"run-{number}"

        def start() -> None:
            try:
                sdk.schedule_new_orchestration(shape, input=given, instance_id=name)
            except grpc.RpcError as error:
                if error.code() != grpc.StatusCode.ALREADY_EXISTS:  # type: ignore[attr-defined]
                    raise

        retrying(start)
        if shape == "waiting":
            retrying(lambda: sdk.raise_orchestration_event(name, "add", data=1000))

    def _finish(self, sdk: TaskHubGrpcClient, number: int, shape: str, limit_s: float) -> None:
        name = f"run-{number}"
        try:
            state = retrying(
                lambda: sdk.wait_for_orchestration_completion(name, timeout=limit_s), timeout_s=limit_s
            )
        except TimeoutError:
            state = retrying(lambda: sdk.get_orchestration_state(name))
            self.verdict.problems.append(f"{name} ({shape}) is stuck: {state}")
            return
        if state is None:
            self.verdict.problems.append(f"{name} ({shape}) is gone")
        elif state.runtime_status != OrchestrationStatus.COMPLETED:
            self.verdict.problems.append(
                f"{name} ({shape}) ended {state.runtime_status}: {state.failure_details}"
            )
        elif state.get_output(int) != expected_result(shape, number):
            expected = expected_result(shape, number)
            self.verdict.problems.append(f"{name} ({shape}) gave {state.serialized_output}, not {expected}")

    def _check_entities(self) -> None:
        stub = self.hub.stub()
        expected = expected_counters(self.programs, self.signals)

        def counters() -> Counter[int]:
            found: Counter[int] = Counter()
            for key in expected:
                request = pb.GetEntityRequest(instanceId=f"@counter@{key}", includeState=True)
                entity = stub.GetEntity(request, timeout=10).entity
                found[key] = -1 if entity.lockedBy.value else int(entity.serializedState.value or 0)
            return found

        try:
            eventually(lambda: counters() == expected, timeout_s=20, every_s=0.2)
        except AssertionError:
            self.verdict.problems.append(f"counters are {dict(counters())}, not {dict(expected)}")

    def _check_histories(self) -> None:
        """Each confirmation once, each result once, in every history that was kept."""
        stub = self.hub.stub()
        states = self.hub.client().get_all_orchestration_states()
        unfinished = [
            state.instance_id for state in states if state.runtime_status != OrchestrationStatus.COMPLETED
        ]
        if unfinished:
            self.verdict.problems.append(f"not completed: {unfinished[:10]}")
        for state in states:
            request = pb.StreamInstanceHistoryRequest(instanceId=state.instance_id)
            history = [
                event for chunk in stub.StreamInstanceHistory(request, timeout=20) for event in chunk.events
            ]
            problem = history_problem(history)
            if problem:
                self.verdict.problems.append(f"{state.instance_id}: {problem}")


CONFIRMATIONS: Final = ("taskScheduled", "timerCreated", "subOrchestrationInstanceCreated")
RESULTS: Final = {
    "taskCompleted": "taskScheduledId",
    "taskFailed": "taskScheduledId",
    "timerFired": "timerId",
    "subOrchestrationInstanceCompleted": "taskScheduledId",
    "subOrchestrationInstanceFailed": "taskScheduledId",
}


def history_problem(history: list[pb.HistoryEvent]) -> str:
    """What is wrong with a finished history, or nothing."""
    confirmed: Counter[int] = Counter()
    results: Counter[int] = Counter()
    for event in history:
        kind = str(event.WhichOneof("eventType"))
        if kind in CONFIRMATIONS:
            confirmed[event.eventId] += 1
        elif kind in RESULTS:
            results[int(getattr(getattr(event, kind), RESULTS[kind]))] += 1
    if any(times > 1 for times in (*confirmed.values(), *results.values())):
        return f"confirmed or answered twice: {confirmed}, {results}"
    if set(results) - set(confirmed):
        return f"results without a confirmation: {set(results) - set(confirmed)}"
    if set(confirmed) - set(results):
        return f"completed without the results of {set(confirmed) - set(results)}"
    ends = sum(1 for event in history if event.HasField("executionCompleted"))
    starts = sum(1 for event in history if event.HasField("executionStarted"))
    return "" if (starts, ends) == (1, 1) else f"{starts} starts and {ends} ends"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.scheduler_kill_loop", description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000))
    parser.add_argument(
        "--limit", type=float, default=1800.0, help="seconds after which a run counts as stuck"
    )
    arguments = parser.parse_args()
    plan = Plan(seed=arguments.seed, kills=arguments.kills, runs=arguments.runs, limit_s=arguments.limit)
    with tempfile.TemporaryDirectory(prefix="towline-kill-loop-") as folder:
        verdict = KillLoop(plan, Path(folder)).run()
    print(verdict)
    return 1 if verdict.problems or verdict.kills < plan.kills else 0


if __name__ == "__main__":
    sys.exit(main())
