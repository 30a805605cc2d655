"""Replay: does today's code still do what recorded runs did?

A durable run goes on under the code that is deployed when its next event comes. Its orchestration is
executed again from the start over the recorded history, and must do the same steps in the same order. Record
some runs, finished or waiting, keep the files beside the tests, and replay them before code is deployed:

```python
for path in Path("tests/histories").glob("*.json"):
    replay("my_app:setup_worker", RecordedRun.load(path))
```

``python -m towline.testing.histories RUN_ID FILE`` records a run of the scheduler that the
`TOWLINE_SCHEDULER_*` variables name, as bridge and worker read them, and its large data from the payload
store of the `TOWLINE_PAYLOADS_*` variables; `record` does so from code.

Agents, activities and models are not called. Nothing is published.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import durabletask.internal.orchestrator_service_pb2 as pb
from azure.core.credentials import TokenCredential
from durabletask.azuremanaged.client import DurableTaskSchedulerClient
from durabletask.payload import deexternalize_payloads_async
from google.protobuf.json_format import MessageToDict, ParseDict
from pydantic import ValidationError

from towline.contracts.errors import PayloadError
from towline.contracts.payload_reference import SCHEME
from towline.contracts.payloads import open_payload_store
from towline.contracts.payloads.durable_store import SharedPayloadStore
from towline.contracts.settings import PayloadSettings, SchedulerSettings
from towline.testing.errors import ReplayError, TestKitError
from towline.worker import host, loader
from towline.worker.agents import no_instrumentation
from towline.worker.outlet import Outlet
from towline.worker.turn import Turn
from towline.worker.worker import TowlineWorker

_QUIET: Final = logging.getLogger("towline.testing.histories.sdk")
_QUIET.setLevel(logging.CRITICAL)

# What an orchestration did, as its history records it and as a turn answers it.
_STEP_OF_EVENT: Final[dict[str, Callable[[Any], str]]] = {
    "taskScheduled": lambda e: f"activity {e.name}",
    "subOrchestrationInstanceCreated": lambda e: f"child {e.name}",
    "timerCreated": lambda _: "timer",
    "eventSent": lambda e: f"event {e.name}",
    "entityOperationCalled": lambda _: "entity",
    "entityOperationSignaled": lambda _: "entity",
    "entityLockRequested": lambda _: "entity",
    "entityUnlockSent": lambda _: "entity",
}
_STEP_OF_ACTION: Final[dict[str, Callable[[Any], str]]] = {
    "scheduleTask": lambda a: f"activity {a.name}",
    "createSubOrchestration": lambda a: f"child {a.name}",
    "createTimer": lambda _: "timer",
    "sendEvent": lambda a: f"event {a.name}",
    "sendEntityMessage": lambda _: "entity",
}
_RECORD_TIMEOUT_S: Final = 60.0
_REFERENCE: Final = f"{SCHEME}:sha256:".encode()
_ENDINGS: Final = ("executionCompleted", "executionTerminated", "orchestratorCompleted")


@dataclass(frozen=True, slots=True)
class RecordedInstance:
    """The history of one orchestration: the run's own, or a child's."""

    instance_id: str
    name: str
    events: tuple[pb.HistoryEvent, ...]


@dataclass(frozen=True, slots=True)
class RecordedRun:
    """A run and its children, with their histories (of their latest generations)."""

    run_id: str
    instances: tuple[RecordedInstance, ...]

    def save(self, path: Path) -> None:
        """Write it as JSON, to be kept beside the tests. It holds the run's data: mind what you commit.

        Raises:
            OSError: It cannot be written there. A folder that is missing is made.
        """
        instances = [
            {
                "instance_id": instance.instance_id,
                "name": instance.name,
                "events": [MessageToDict(event) for event in instance.events],
            }
            for instance in self.instances
        ]
        text = {"run_id": self.run_id, "instances": instances}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(text, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> RecordedRun:
        """Read what `save` wrote.

        Raises:
            TestKitError: It is no such file.
        """
        try:
            text: Any = json.loads(path.read_text(encoding="utf-8"))
            return cls(
                run_id=text["run_id"],
                instances=tuple(
                    RecordedInstance(
                        one["instance_id"],
                        one["name"],
                        tuple(ParseDict(event, pb.HistoryEvent()) for event in one["events"]),
                    )
                    for one in text["instances"]
                ),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise TestKitError(f"{path} is no recorded run: {error!r}; record it again") from error


def record(
    scheduler: SchedulerSettings,
    run_id: str,
    *,
    credential: TokenCredential | None = None,
    payloads: PayloadSettings | None = None,
) -> RecordedRun:
    """The histories of a run and its children, from the scheduler.

    Args:
        scheduler: Address, task hub and what to show there; of a test's stack, ``towline_stack.scheduler``.
        run_id: The run; it may have ended or wait.
        credential: In place of the one that `scheduler` names.
        payloads: Where the run's large data is; of a test's stack, ``towline_stack.payloads``. Default: what
            the `TOWLINE_PAYLOADS_*` variables name.

    Raises:
        TestKitError: There is no such run, or the scheduler does not answer, or refuses; or large data of the
            run is not in the payload store.
    """
    address = scheduler.address
    client = DurableTaskSchedulerClient(
        host_address=address,
        secure_channel=not address.startswith("http://"),
        taskhub=scheduler.taskhub,
        token_credential=credential if credential is not None else host.credential(scheduler),
        logger=_QUIET,
    )
    try:
        instances: list[RecordedInstance] = []
        wanted = [run_id]
        while wanted:
            instance_id = wanted.pop()
            events = _with_payloads(_history(client, instance_id), payloads)
            started = next((e.executionStarted for e in events if e.HasField("executionStarted")), None)
            if started is None:
                raise TestKitError(f"{address} has no run {instance_id} in task hub {scheduler.taskhub}")
            instances.append(RecordedInstance(instance_id, started.name, events))
            wanted += [
                event.subOrchestrationInstanceCreated.instanceId
                for event in events
                if event.HasField("subOrchestrationInstanceCreated")
            ]
        return RecordedRun(run_id, tuple(instances))
    finally:
        client.close()


def replay(app: str, recorded: RecordedRun, *, outputs: bool = False) -> None:
    """Execute the orchestrations of `app` over a recorded run.

    Args:
        app: ``module:attr``, as for ``towline worker --app``.
        recorded: From `record` or `RecordedRun.load`.
        outputs: Also compare what was returned; by default another output is not an error, since it breaks no
            run that is under way.

    Raises:
        ReplayError: The code takes other steps than the run did, or ends differently.
        AppLoadError: The app cannot be set up.
    """
    worker = TowlineWorker(
        outlet=cast("Outlet", _NoOutlet()),
        source="towline/replay",
        host_address="http://127.0.0.1:1",
        secure_channel=False,
        taskhub="replay",
        token_credential=None,
        logger=_QUIET,
    )
    loader.set_up(loader.load(app), worker, no_instrumentation)
    for instance in recorded.instances:
        problem = difference(instance, _execute(worker, instance), outputs=outputs)
        if problem is not None:
            raise ReplayError(instance.instance_id, instance.name, problem)


def difference(
    instance: RecordedInstance, answered: Iterable[pb.OrchestratorAction], *, outputs: bool = False
) -> str | None:
    """How the last recorded turn differs from what the code `answered` now; None if it does not. Pure."""
    actions = list(answered)
    _, last = _last_turn(instance.events)
    ended = next((e.executionCompleted for e in last if e.HasField("executionCompleted")), None)
    ends = next((a.completeOrchestration for a in actions if a.HasField("completeOrchestration")), None)
    if (problem := _compare_ends(ended, ends, outputs=outputs)) is not None:
        return problem
    did = _counted(last, _STEP_OF_EVENT)
    does = _counted(actions, _STEP_OF_ACTION)
    if missing := did - does:
        return f"it does not do what the run did: {_listed(missing)}"
    if more := does - did:
        return f"it does what the run did not: {_listed(more)}"
    return None


def _compare_ends(
    ended: pb.ExecutionCompletedEvent | None, ends: pb.CompleteOrchestrationAction | None, *, outputs: bool
) -> str | None:
    if ended is None and ends is None:
        return None
    before = "goes on" if ended is None else _ending(ended)
    now = "goes on" if ends is None else _ending(ends)
    if before != now:
        detail = f": {ends.failureDetails.errorMessage}" if ends and ends.failureDetails.errorMessage else ""
        return f"the run {before}, the code {now}{detail}"
    if outputs and ended is not None and ends is not None and ended.result.value != ends.result.value:
        return f"the run returned {ended.result.value}, the code {ends.result.value}"
    return None


def _ending(end: Any) -> str:
    status = (
        pb.OrchestrationStatus.Name(end.orchestrationStatus).removeprefix("ORCHESTRATION_STATUS_").lower()
    )
    error = end.failureDetails.errorType.rpartition(".")[2]
    return f"ends {status}" + (f" with {error}" if error else "")


def _step(message: Any, table: dict[str, Callable[[Any], str]]) -> str | None:
    for field, describe in table.items():
        if message.HasField(field):
            return describe(getattr(message, field))
    return None


def _counted(messages: Iterable[Any], table: dict[str, Callable[[Any], str]]) -> Counter[str]:
    steps = (_step(message, table) for message in messages)
    return Counter(step for step in steps if step is not None)


def _listed(steps: Counter[str]) -> str:
    return ", ".join(step if count == 1 else f"{count} times {step}" for step, count in sorted(steps.items()))


def _last_turn(
    events: tuple[pb.HistoryEvent, ...],
) -> tuple[tuple[pb.HistoryEvent, ...], tuple[pb.HistoryEvent, ...]]:
    begins = max((i for i, e in enumerate(events) if e.HasField("orchestratorStarted")), default=0)
    return events[:begins], events[begins:]


def _execute(worker: TowlineWorker, instance: RecordedInstance) -> list[pb.OrchestratorAction]:
    past, last = _last_turn(instance.events)
    delivered = [
        event
        for event in last
        if _step(event, _STEP_OF_EVENT) is None and not any(event.HasField(field) for field in _ENDINGS)
    ]
    request = pb.OrchestratorRequest(instanceId=instance.instance_id, pastEvents=past, newEvents=delivered)
    answer = _Answer()
    # The worker's own way of taking a turn: the code runs in the host's drive loop, as it does in production.
    worker._execute_orchestrator(request, answer, "replay")  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
    return answer.actions


class _Answer:
    """Stands for the scheduler: takes the turn's answer."""

    def __init__(self) -> None:
        self.actions: list[pb.OrchestratorAction] = []

    def CompleteOrchestratorTask(self, response: pb.OrchestratorResponse) -> None:  # noqa: N802 - gRPC's name
        self.actions = list(response.actions)


class _NoOutlet:
    """Says nothing to anybody."""

    def replace(self, instance_id: str) -> None:
        del instance_id

    def knows_beginning(self, instance_id: str) -> bool:
        del instance_id
        return True

    def send(self, turn: Turn, raise_event: Any) -> None:
        del turn, raise_event


def _history(client: DurableTaskSchedulerClient, instance_id: str) -> tuple[pb.HistoryEvent, ...]:
    import grpc

    request = pb.StreamInstanceHistoryRequest(instanceId=instance_id)
    # The public method converts the events into classes from which the protocol's cannot be made again.
    stub: Any = client._stub  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
    try:
        return tuple(
            event
            for chunk in stub.StreamInstanceHistory(request, timeout=_RECORD_TIMEOUT_S)
            for event in chunk.events
        )
    except grpc.RpcError as error:
        answer = cast("Any", error)
        if answer.code() is grpc.StatusCode.NOT_FOUND:
            return ()
        raise TestKitError(
            f"{instance_id} cannot be recorded: the scheduler says {answer.code().name}: {answer.details()}; "
            "see TOWLINE_SCHEDULER_ADDRESS, _TASKHUB, _CREDENTIAL and _TOKEN"
        ) from error


def _with_payloads(
    events: tuple[pb.HistoryEvent, ...], settings: PayloadSettings | None
) -> tuple[pb.HistoryEvent, ...]:
    """The events with their large data in the place of references to it."""
    if not any(_REFERENCE in event.SerializeToString() for event in events):
        return events

    async def fetch() -> None:
        chosen = settings or PayloadSettings()
        store = open_payload_store(chosen)
        if store is None:
            raise TestKitError(
                "the run has data in a payload store: set TOWLINE_PAYLOADS_URL as for the worker, "
                "or give payloads="
            )
        async with store:
            shared = SharedPayloadStore(store, threshold_bytes=chosen.inline_bytes)
            for event in events:
                await deexternalize_payloads_async(event, shared)

    try:
        # In a thread: the caller may be on an event loop of its own.
        with ThreadPoolExecutor(1) as thread:
            thread.submit(lambda: asyncio.run(fetch())).result()
    except PayloadError as error:
        raise TestKitError(f"the run's data can't be read from the payload store: {error}") from error
    return events


def main() -> None:
    """Record one run into a file."""
    parser = argparse.ArgumentParser(prog="python -m towline.testing.histories", description="Record a run.")
    parser.add_argument("run_id", help="the run; it may have ended or wait")
    parser.add_argument("file", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    try:
        record(SchedulerSettings(), arguments.run_id).save(arguments.file)
    except TestKitError as error:
        parser.exit(2, f"{error}\n")
    except OSError as error:
        parser.exit(1, f"{arguments.file} cannot be written: {error}\n")
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in (error.title, *first["loc"]))
        parser.exit(2, f"{field}: {first['msg']}: see `towline settings`\n")


if __name__ == "__main__":
    main()
