"""A refusal is an answer too: it says nothing that is not on disk."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from durabletask.internal import orchestrator_service_pb2 as pb
from tests.unit.scheduler.test_store import open_runtime

from towline.http2 import Calls, Keepalive, Server
from towline.scheduler.server.readers import Readers
from towline.scheduler.server.rpc import Binding
from towline.scheduler.server.service import Service
from towline.scheduler.store import failpoints

NO_METADATA: tuple[tuple[str, str], ...] = ()


@pytest.fixture
async def calls(tmp_path: Path) -> AsyncIterator[Calls]:
    """Calls to a server whose commits a test can have fail."""
    runtime, writer = open_runtime(tmp_path)
    readers = Readers(runtime.path)
    binding = Binding(runtime, Service(runtime, readers))
    server = Server(binding.handlers(), message_bytes_max=1 << 20, keepalive=Keepalive())
    port = await server.listen("127.0.0.1", 0)
    made = Calls("127.0.0.1", port)
    yield made
    failpoints.disarm()
    made.close()
    await server.stop(0.1, binding.stop)
    readers.close()
    runtime.close()
    writer.close()


async def outcome(calls: Calls, method: str, request: Any) -> grpc.StatusCode:
    """How a call ends."""
    try:
        await calls.call(
            f"/TaskHubSidecarService/{method}",
            request.SerializeToString(),
            timeout_s=10,
            metadata=NO_METADATA,
        )
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


async def exists(calls: Calls, instance_id: str) -> bool:
    answer = await calls.call(
        "/TaskHubSidecarService/GetInstance",
        pb.GetInstanceRequest(instanceId=instance_id).SerializeToString(),
        timeout_s=10,
        metadata=NO_METADATA,
    )
    return pb.GetInstanceResponse.FromString(answer).exists


async def test_who_starts_a_run_twice_is_not_told_that_it_exists_when_it_was_never_committed(
    calls: Calls,
) -> None:
    """Who was told so took the run for started, and nobody started it again."""
    await outcome(calls, "StartInstance", pb.CreateInstanceRequest(instanceId="before", name="x"))
    request = pb.CreateInstanceRequest(instanceId="run", name="x")
    failpoints.arm("commit.before", "error")

    outcomes = await asyncio.gather(*(outcome(calls, "StartInstance", request) for _ in range(2)))

    assert outcomes == [grpc.StatusCode.UNAVAILABLE] * 2
    assert not await exists(calls, "run")
    assert [await outcome(calls, "StartInstance", request) for _ in range(2)] == [
        grpc.StatusCode.OK,
        grpc.StatusCode.ALREADY_EXISTS,
    ]


async def test_who_restarts_a_run_is_not_told_that_it_goes_on_when_its_restart_was_never_committed(
    calls: Calls,
) -> None:
    await outcome(calls, "StartInstance", pb.CreateInstanceRequest(instanceId="run", name="x"))
    await outcome(calls, "TerminateInstance", pb.TerminateRequest(instanceId="run"))
    request = pb.RestartInstanceRequest(instanceId="run")
    failpoints.arm("commit.before", "error")

    outcomes = await asyncio.gather(*(outcome(calls, "RestartInstance", request) for _ in range(2)))

    assert outcomes == [grpc.StatusCode.UNAVAILABLE] * 2
