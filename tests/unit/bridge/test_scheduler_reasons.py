"""A reason is the one text in a history that is no JSON: it must not be taken for a payload's reference."""

from __future__ import annotations

import asyncio
from concurrent import futures
from typing import Any

import grpc
import pytest
from durabletask.internal import orchestrator_service_pb2 as pb
from durabletask.internal import orchestrator_service_pb2_grpc as pb_grpc
from tests.unit.payloads.test_store import folder_store

from towline.bridge.scheduler import Scheduler
from towline.contracts.payloads import PayloadReference, is_reference
from towline.contracts.settings import SchedulerSettings


class Listening(pb_grpc.TaskHubSidecarServiceServicer):
    """Keeps the reasons that it is given."""

    def __init__(self) -> None:
        self.reasons: list[str] = []

    def SuspendInstance(self, request: Any, context: object) -> Any:  # noqa: N802 - gRPC's name
        self.reasons.append(request.reason.value)
        return pb.SuspendResponse()

    def ResumeInstance(self, request: Any, context: object) -> Any:  # noqa: N802 - gRPC's name
        self.reasons.append(request.reason.value)
        return pb.ResumeResponse()


@pytest.mark.parametrize("reason", ["at lunch", str(PayloadReference("0" * 64, 1))])
async def test_a_reason_reaches_the_scheduler_as_text_only(reason: str, tmp_path: Any) -> None:
    listening = Listening()
    server = grpc.server(futures.ThreadPoolExecutor(2))
    pb_grpc.add_TaskHubSidecarServiceServicer_to_server(listening, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    settings = SchedulerSettings(address=f"http://127.0.0.1:{port}")
    store = folder_store(tmp_path / "p")
    async with Scheduler(settings, call_timeout_s=10, payloads=store) as scheduler:
        await scheduler.suspend("r1", reason)
        await scheduler.resume("r1", reason)
    await asyncio.to_thread(server.stop(0).wait)
    assert [given.endswith(reason) for given in listening.reasons] == [True, True]
    assert not any(is_reference(given) for given in listening.reasons)
