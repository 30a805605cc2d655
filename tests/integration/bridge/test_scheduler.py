"""The bridge's way to the scheduler, without gRPC's core and by it: the same answers, errors and metadata."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import grpc
import grpc.aio
import pytest
from durabletask.internal import orchestrator_service_pb2 as pb
from durabletask.internal import orchestrator_service_pb2_grpc as pb_grpc
from pydantic import SecretStr

from towline.bridge.errors import (
    RunExistsError,
    RunUnknownError,
    SchedulerAwayError,
    SchedulerFaultError,
    SchedulerRefusedError,
)
from towline.bridge.scheduler import Scheduler
from towline.contracts.settings import SchedulerSettings
from towline.dev import SchedulerPart

LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)
LARGE = 30 << 20


@pytest.fixture(params=["direct", "grpc"])
def direct(request: pytest.FixtureRequest) -> bool:
    return request.param == "direct"


@pytest.fixture
async def scheduler(scheduler: str, direct: bool) -> AsyncGenerator[Scheduler]:
    settings = SchedulerSettings(address=scheduler, taskhub=f"t{uuid4().hex[:8]}")
    async with Scheduler(settings, call_timeout_s=10.0, direct=direct) as made:
        yield made


async def test_a_run_is_started_once_found_steered_and_ended(scheduler: Scheduler) -> None:
    await scheduler.ping()
    await scheduler.start("review", "r-1", {"topic": "rivers"}, None)
    with pytest.raises(RunExistsError):
        await scheduler.start("review", "r-1", {"topic": "rivers"}, None)
    for steer in (scheduler.suspend, scheduler.resume):
        await steer("r-1", "because")
    await scheduler.raise_event("r-1", "towline.decision", {"command_id": "c-1"})
    assert not await scheduler.wait_for_end("r-1", within_s=0.2)
    assert not (await scheduler.commands_of("r-1")).ended
    await scheduler.terminate("r-1", {"said": "enough"})
    assert await scheduler.wait_for_end("r-1", within_s=10.0)
    state = await scheduler.find("r-1")
    assert state is not None
    assert (state.phase, state.output) == ("terminated", '{"said": "enough"}')
    assert await scheduler.ended_ids(since=LONG_AGO) == ["r-1"]
    assert await scheduler.ended_ids(since=datetime.now(UTC) + timedelta(hours=1)) == []


async def test_a_run_that_is_not_there_is_unknown(scheduler: Scheduler) -> None:
    assert await scheduler.find("nowhere") is None
    with pytest.raises(RunUnknownError):
        await scheduler.raise_event("nowhere", "word", {})
    with pytest.raises(RunUnknownError):
        await scheduler.suspend("nowhere", None)


async def test_many_starts_at_once_each_have_their_run(scheduler: Scheduler) -> None:
    await asyncio.gather(*(scheduler.start("review", f"r-{n}", {"n": n}, None) for n in range(300)))
    found = await asyncio.gather(*(scheduler.find(f"r-{n}") for n in range(300)))
    assert [state and state.run_id for state in found] == [f"r-{n}" for n in range(300)]


@pytest.mark.slow
async def test_a_scheduler_that_is_frozen_killed_or_back_is_told_apart(tmp_path: Any, direct: bool) -> None:
    with SchedulerPart(data=tmp_path) as part:
        settings = SchedulerSettings(address=part.address)
        async with Scheduler(settings, call_timeout_s=1.0, direct=direct) as scheduler:
            await scheduler.start("review", "before", {}, None)
            os.killpg(part.pid, signal.SIGSTOP)
            try:
                for _ in range(3):
                    async with asyncio.timeout(5.0):
                        with pytest.raises(SchedulerAwayError):
                            await scheduler.ping()
            finally:
                os.killpg(part.pid, signal.SIGCONT)
            await until_back(scheduler)
            assert await scheduler.find("before") is not None
            await asyncio.to_thread(part.kill)
            for _ in range(3):
                with pytest.raises(SchedulerAwayError):
                    await scheduler.ping()
            await asyncio.to_thread(part.start)
            await until_back(scheduler)
            with pytest.raises(RunExistsError):
                await scheduler.start("review", "before", {}, None)


async def until_back(scheduler: Scheduler) -> None:
    async with asyncio.timeout(40.0):
        while True:
            try:
                await scheduler.ping()
            except SchedulerAwayError:
                await asyncio.sleep(0.1)
            else:
                return


class Recording(pb_grpc.TaskHubSidecarServiceServicer):
    """Keeps what each call comes with, and answers as it is told."""

    def __init__(self) -> None:
        self.came: dict[str, dict[str, str]] = {}
        self.code: grpc.StatusCode | None = None

    async def _record(self, method: str, context: Any) -> None:
        self.came[method] = {str(name): str(value) for name, value in context.invocation_metadata()}
        if self.code is not None:
            await context.abort(self.code, "because")

    async def GetInstance(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC's name
        await self._record("GetInstance", context)
        state = pb.OrchestrationState(instanceId=request.instanceId)
        state.output.value = '"' + "x" * LARGE + '"'
        return pb.GetInstanceResponse(exists=request.getInputsAndOutputs, orchestrationState=state)

    async def WaitForInstanceCompletion(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC's name
        await self._record("WaitForInstanceCompletion", context)
        return pb.GetInstanceResponse(exists=False)

    async def StreamInstanceHistory(self, request: Any, context: Any) -> AsyncGenerator[Any]:  # noqa: N802 - gRPC's name
        await self._record("StreamInstanceHistory", context)
        yield pb.HistoryChunk()


@asynccontextmanager
async def recording() -> AsyncGenerator[tuple[Recording, Callable[..., Scheduler]]]:
    service = Recording()
    server = grpc.aio.server(options=(("grpc.max_send_message_length", -1),))
    pb_grpc.add_TaskHubSidecarServiceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()

    def scheduler(*, direct: bool, **settings: Any) -> Scheduler:
        address = SchedulerSettings(address=f"http://127.0.0.1:{port}", **settings)
        return Scheduler(address, call_timeout_s=10.0, direct=direct)

    try:
        yield service, scheduler
    finally:
        await server.stop(None)


async def test_every_call_comes_with_the_same_metadata() -> None:
    given = {"taskhub": "mine", "credential": "token", "token": SecretStr("secret")}
    seen: dict[bool, dict[str, dict[str, str]]] = {}
    async with recording() as (service, made):
        for direct in (False, True):
            async with made(direct=direct, **given) as scheduler:
                await scheduler.ping()
                await scheduler.wait_for_end("r-1", within_s=1.0)
                await scheduler.commands_of("r-1")
            seen[direct], service.came = service.came, {}
    for came in seen.values():
        assert came.keys() == {"GetInstance", "WaitForInstanceCompletion", "StreamInstanceHistory"}
        for metadata in came.values():
            assert metadata["taskhub"] == "mine"
            assert metadata["authorization"] == "Bearer secret"
            assert metadata["x-user-agent"].startswith("durabletask-python/")
    agent = "x-user-agent"
    assert seen[True]["GetInstance"][agent] == seen[False]["GetInstance"][agent]


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (grpc.StatusCode.UNAVAILABLE, SchedulerAwayError),
        (grpc.StatusCode.UNAUTHENTICATED, SchedulerAwayError),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, SchedulerAwayError),
        (grpc.StatusCode.INVALID_ARGUMENT, SchedulerRefusedError),
        (grpc.StatusCode.INTERNAL, SchedulerFaultError),
    ],
)
async def test_a_call_that_the_scheduler_fails_says_why(
    direct: bool, code: grpc.StatusCode, error: type[Exception]
) -> None:
    async with recording() as (service, made), made(direct=direct) as scheduler:
        service.code = code
        with pytest.raises(error, match="because"):
            await scheduler.ping()


async def test_a_wait_for_a_run_that_a_scheduler_says_is_unknown_is_over(direct: bool) -> None:
    async with recording() as (service, made), made(direct=direct) as scheduler:
        service.code = grpc.StatusCode.NOT_FOUND
        assert await scheduler.wait_for_end("purged", within_s=1.0)


async def test_data_that_the_scheduler_finds_too_large_is_refused_and_not_tried_for_ever(
    scheduler: Scheduler,
) -> None:
    """Taken for an overload it would hold up everything else until somebody looks."""
    await scheduler.start("review", "r-1", {}, None)
    data = {"text": "x" * 5_000_000}
    with pytest.raises(SchedulerRefusedError, match="4063232 bytes") as starting:
        await scheduler.start("review", "r-2", data, None)
    with pytest.raises(SchedulerRefusedError, match="4063232 bytes") as raising:
        await scheduler.raise_event("r-1", "note", data)
    assert starting.value.too_large
    assert raising.value.too_large


async def test_a_large_output_is_found(direct: bool) -> None:
    async with recording() as (_, made), made(direct=direct) as scheduler:
        state = await scheduler.find("r-1")
        assert state is not None
        assert len(state.output or "") == LARGE + 2


@pytest.mark.parametrize("address", ["https://127.0.0.1:1", "127.0.0.1:1"])
async def test_a_scheduler_with_tls_is_spoken_to_by_grpc(address: str) -> None:
    async with Scheduler(SchedulerSettings(address=address), call_timeout_s=1.0) as scheduler:
        clients = scheduler._clients
        assert clients.short is clients.long
