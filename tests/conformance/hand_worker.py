"""A worker driven by hand: what a stock one would not do."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from typing import Literal

import grpc
from durabletask.internal import orchestrator_service_pb2 as pb
from durabletask.internal.orchestrator_service_pb2_grpc import TaskHubSidecarServiceStub
from google.protobuf import empty_pb2, wrappers_pb2

Kind = Literal["orchestratorRequest", "activityRequest", "entityRequest", "entityRequestV2", "healthPing"]


class HandWorker:
    """A work item stream read item by item; answers are given by the test."""

    def __init__(self, channel: grpc.Channel, request: pb.GetWorkItemsRequest) -> None:
        self.stub = TaskHubSidecarServiceStub(channel)
        self.stub.Hello(empty_pb2.Empty(), timeout=10, wait_for_ready=True)
        self._stream = self.stub.GetWorkItems(request)
        self._items: queue.Queue[pb.WorkItem | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, name="hand worker", daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with contextlib.suppress(grpc.RpcError):
            for item in self._stream:
                self._items.put(item)
        self._items.put(None)

    def next(self, kind: Kind | None = None, *, timeout_s: float = 10.0) -> pb.WorkItem:
        """The next item, of ``kind`` if given; pings are skipped unless asked for."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                item = self._items.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"no {kind or 'work item'} within {timeout_s:g} s") from None
            assert item is not None, "the work item stream ended"
            given = item.WhichOneof("request")
            if given == kind or (kind is None and given != "healthPing"):
                return item

    def drain(self, *, quiet_s: float) -> list[pb.WorkItem]:
        """All items until none has come for ``quiet_s``."""
        items: list[pb.WorkItem] = []
        while True:
            try:
                items.append(self.next(timeout_s=quiet_s))
            except AssertionError:
                return items

    def answer_turn(
        self,
        item: pb.WorkItem,
        *actions: pb.OrchestratorAction,
        trace: pb.OrchestrationTraceContext | None = None,
    ) -> None:
        self.stub.CompleteOrchestratorTask(
            pb.OrchestratorResponse(
                instanceId=item.orchestratorRequest.instanceId,
                completionToken=item.completionToken,
                actions=actions,
                orchestrationTraceContext=trace,
            ),
            timeout=10,
        )

    def answer_activity(self, item: pb.WorkItem, result: str = "null") -> None:
        self.stub.CompleteActivityTask(
            pb.ActivityResponse(
                instanceId=item.activityRequest.orchestrationInstance.instanceId,
                taskId=item.activityRequest.taskId,
                result=wrappers_pb2.StringValue(value=result),
                completionToken=item.completionToken,
            ),
            timeout=10,
        )

    def close(self) -> None:
        self._stream.cancel()
        self._reader.join(5)


def complete(
    result: str = "null",
    *,
    status: pb.OrchestrationStatus = pb.ORCHESTRATION_STATUS_COMPLETED,
    action_id: int = 99,
) -> pb.OrchestratorAction:
    return pb.OrchestratorAction(
        id=action_id,
        completeOrchestration=pb.CompleteOrchestrationAction(
            orchestrationStatus=status, result=wrappers_pb2.StringValue(value=result)
        ),
    )
