"""The dispatcher's stream of work items, against a scheduler that does little more than listen."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import grpc
import grpc.aio
import pytest
from azure.core.credentials import AccessToken
from durabletask.internal import orchestrator_service_pb2 as pb
from durabletask.internal import orchestrator_service_pb2_grpc as pb_grpc
from google.protobuf import empty_pb2, wrappers_pb2
from tests.unit.worker.simulator import PaperOutlet
from tests.waiting import eventually_async

from towline.worker.dispatcher import Dispatcher, DispatcherOptions, dispatcher
from towline.worker.worker import TowlineWorker

MEGABYTE: Final = 1 << 20
LARGE: Final = 30 * MEGABYTE


class Listening(pb_grpc.TaskHubSidecarServiceServicer):
    """Opens streams and says nothing on them, but for what it is given to say."""

    def __init__(self, *says: pb.WorkItem) -> None:
        self._says: asyncio.Queue[pb.WorkItem] = asyncio.Queue()
        self.hand_out(*says)
        self.streams: list[dict[str, str]] = []
        self.done: list[str] = []
        self.answers: dict[str, Any] = {}
        """What was reported, by token."""

    def hand_out(self, *items: pb.WorkItem) -> None:
        """Say these too, on the stream that is open or the next one."""
        for item in items:
            self._says.put_nowait(item)

    async def Hello(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC's name
        return empty_pb2.Empty()

    async def GetWorkItems(self, request: Any, context: Any) -> AsyncGenerator[Any]:  # noqa: N802 - gRPC's name
        self.streams.append({str(name): str(value) for name, value in context.invocation_metadata()})
        await context.send_initial_metadata(())
        while True:
            yield await self._says.get()

    async def CompleteActivityTask(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC's name
        return self._take(request)

    async def CompleteEntityTask(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC's name
        return self._take(request)

    def _take(self, answer: Any) -> Any:
        self.done.append(answer.completionToken)
        self.answers[answer.completionToken] = answer
        return pb.CompleteTaskResponse()


@asynccontextmanager
async def dispatching(
    service: Listening,
    *,
    direct: bool = True,
    set_up: Callable[[TowlineWorker], None] | None = None,
    credential: Any = None,
) -> AsyncGenerator[Dispatcher]:
    server = grpc.aio.server(options=(("grpc.max_send_message_length", -1),))
    pb_grpc.add_TaskHubSidecarServiceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    outlet: Any = PaperOutlet()
    worker = TowlineWorker(
        outlet=outlet,
        source="towline/worker/test",
        host_address=f"127.0.0.1:{port}",
        taskhub="mine",
        token_credential=credential,
        secure_channel=False,
    )
    worker.add_activity(length)
    if set_up is not None:
        set_up(worker)
    made = Dispatcher(worker, outlet, DispatcherOptions(direct=direct))
    made.start()
    try:
        yield made
    finally:
        await made.stop(5.0)
        await server.stop(None)


def length(_context: Any, text: str) -> int:
    return len(text)


@pytest.fixture(params=["direct", "grpc"])
def direct(request: pytest.FixtureRequest) -> bool:
    return request.param == "direct"


class Remembering(Listening):
    """Has a turn's history for who asks for it, from the second time on."""

    def __init__(self, past: list[pb.HistoryEvent], *says: pb.WorkItem) -> None:
        super().__init__(*says)
        self._past = past
        self.asked: list[tuple[str, str]] = []
        self.given_back: list[str] = []

    async def StreamInstanceHistory(self, request: Any, context: Any) -> AsyncGenerator[Any]:  # noqa: N802 - gRPC's name
        token = str(dict(context.invocation_metadata())["x-completion-token"])
        assert request.forWorkItemProcessing
        self.asked.append((request.executionId.value, token))
        half = len(self._past) // 2
        yield pb.HistoryChunk(events=self._past[:half])
        if len(self.asked) == 1:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "in the middle of it")
        yield pb.HistoryChunk(events=self._past[half:])

    async def CompleteOrchestratorTask(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC's name
        return self._take(request)

    async def AbandonTaskOrchestratorWorkItem(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC's name
        self.given_back.append(request.completionToken)
        return pb.AbandonOrchestrationTaskResponse()


async def test_a_turn_without_its_history_waits_for_all_of_it_or_is_given_back(direct: bool) -> None:
    def two_steps(ctx: Any, _: Any) -> Any:
        first = yield ctx.call_activity("length", input="a")
        second = yield ctx.call_activity("length", input="b")
        return [first, second]

    def started(at: int) -> pb.HistoryEvent:
        event = pb.HistoryEvent(eventId=-1, orchestratorStarted=pb.OrchestratorStartedEvent())
        event.timestamp.FromSeconds(at)
        return event

    def result(of: int, value: str) -> pb.HistoryEvent:
        completed = pb.TaskCompletedEvent(taskScheduledId=of, result=wrappers_pb2.StringValue(value=value))
        return pb.HistoryEvent(eventId=-1, taskCompleted=completed)

    def scheduled(number: int) -> pb.HistoryEvent:
        return pb.HistoryEvent(eventId=number, taskScheduled=pb.TaskScheduledEvent(name="length"))

    begun = pb.ExecutionStartedEvent(
        name="two_steps", orchestrationInstance=pb.OrchestrationInstance(instanceId="long")
    )
    past = [started(1), pb.HistoryEvent(eventId=-1, executionStarted=begun), scheduled(1)]
    past += [started(2), result(1, "1"), scheduled(2)]
    turn = pb.OrchestratorRequest(
        instanceId="long",
        executionId=wrappers_pb2.StringValue(value="execution"),
        newEvents=[started(3), result(2, "2")],
        requiresHistoryStreaming=True,
    )
    service = Remembering(past, pb.WorkItem(completionToken="first", orchestratorRequest=turn))
    async with dispatching(
        service, direct=direct, set_up=lambda worker: worker.add_orchestrator(two_steps)
    ) as made:
        await eventually_async(lambda: service.given_back == ["first"])
        service.hand_out(pb.WorkItem(completionToken="second", orchestratorRequest=turn))
        await eventually_async(lambda: "second" in service.answers)
        assert made.is_alive
    assert service.asked == [("execution", "first"), ("execution", "second")]
    assert service.done == ["second"]
    (end,) = service.answers["second"].actions
    assert end.completeOrchestration.result.value == "[1, 2]"


async def test_a_stream_that_falls_silent_is_opened_anew(
    direct: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher, "_SILENT_FOR_S", 0.2)
    monkeypatch.setattr(dispatcher, "_WATCH_EVERY_S", 0.05)
    service = Listening()
    async with dispatching(service, direct=direct) as made:
        await eventually_async(lambda: len(service.streams) >= 3)
        assert made.is_alive
    assert {metadata["taskhub"] for metadata in service.streams} == {"mine"}
    assert {metadata["x-repeats-reports"] for metadata in service.streams} == {"true"}
    assert len({metadata["workerid"] for metadata in service.streams}) == 1, "it is the same worker"


class FlakyCredential:
    """Gives a token each time but for one, as an identity service that is away for a moment."""

    def __init__(self, fails_at: int) -> None:
        self.asked = 0
        self._fails_at = fails_at

    def get_token(self, *_scopes: str, **_options: Any) -> AccessToken:
        self.asked += 1
        if self.asked == self._fails_at:
            raise ConnectionError("no identity service")
        return AccessToken(f"token-{self.asked}", int(time.time()) + 1)


@pytest.mark.parametrize("fails_at", [1, 2], ids=["at the start", "when it reconnects"])
async def test_a_credential_that_fails_once_is_asked_again(
    fails_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher, "_SILENT_FOR_S", 0.2)
    monkeypatch.setattr(dispatcher, "_WATCH_EVERY_S", 0.05)
    service, credential = Listening(), FlakyCredential(fails_at)
    async with dispatching(service, credential=credential) as made:
        await eventually_async(lambda: credential.asked >= 3 and len(service.streams) >= 2)
        assert made.is_alive
    assert service.streams[-1]["authorization"] == f"Bearer token-{credential.asked}"


async def test_items_of_any_size_and_number_are_taken_and_reported(direct: bool) -> None:
    sizes = [10] * 200 + [LARGE, 100_000, 10]
    items = [
        pb.WorkItem(
            completionToken=f"token-{number}",
            activityRequest=pb.ActivityRequest(
                name="length", taskId=number, input={"value": f'"{"x" * size}"'}
            ),
        )
        for number, size in enumerate(sizes)
    ]
    service = Listening(*items)
    async with dispatching(service, direct=direct):
        await eventually_async(lambda: len(service.done) == len(sizes))
    assert sorted(service.done) == sorted(item.completionToken for item in items)
