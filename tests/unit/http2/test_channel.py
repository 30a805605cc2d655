"""A channel for generated code, without a network."""

from __future__ import annotations

import pytest
from durabletask.internal import orchestrator_service_pb2 as pb
from durabletask.internal import orchestrator_service_pb2_grpc as pb_grpc

from towline.http2 import Calls, DirectChannel


async def test_generated_code_can_be_made_on_it_and_streams_are_refused() -> None:
    stub = pb_grpc.TaskHubSidecarServiceStub(DirectChannel(Calls("127.0.0.1", 1), timeout_s=1.0, metadata=()))
    with pytest.raises(NotImplementedError, match="one answer"):
        stub.GetWorkItems(pb.GetWorkItemsRequest())
