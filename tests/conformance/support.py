"""What the scheduler suites share: a server process, stock clients and workers, a worker driven by hand."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, Literal, Self, TypeVar
from uuid import uuid4

import grpc
from durabletask.client import TaskHubGrpcClient
from durabletask.grpc_options import GrpcChannelOptions, GrpcWorkerResiliencyOptions
from durabletask.internal import orchestrator_service_pb2 as pb
from durabletask.internal.orchestrator_service_pb2_grpc import TaskHubSidecarServiceStub
from durabletask.worker import ConcurrencyOptions, TaskHubGrpcWorker, VersioningOptions
from google.protobuf import empty_pb2, wrappers_pb2
from tests.waiting import eventually

T = TypeVar("T")
Kind = Literal["orchestratorRequest", "activityRequest", "entityRequest", "entityRequestV2", "healthPing"]

ROOT: Final = Path(__file__).resolve().parents[2]
QUIET: Final = logging.getLogger("towline.conformance.sdk")
QUIET.setLevel(logging.CRITICAL)
# A stock worker waits up to 30 s between two tries to reconnect; tests that restart the server need less.
FAST_RECONNECT: Final = GrpcWorkerResiliencyOptions(
    reconnect_backoff_base_seconds=0.1, reconnect_backoff_cap_seconds=0.5
)
# gRPC keeps its own reconnect backoff per channel, from 1 s to 2 min.
FAST_CHANNEL: Final = GrpcChannelOptions(
    raw_options=[
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 500),
    ]
)


def retrying(call: Callable[[], T], *, timeout_s: float = 60.0) -> T:
    """Do what a careful client does while a server restarts: repeat a call that was answered UNAVAILABLE."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return call()
        except grpc.RpcError as error:
            code = error.code()  # type: ignore[attr-defined]
            cancelled = code == grpc.StatusCode.CANCELLED  # the SDK replaced its channel under the call
            if not (code == grpc.StatusCode.UNAVAILABLE or cancelled) or time.monotonic() > deadline:
                raise
        time.sleep(0.05)


def cpu_s(pid: int) -> float:
    """User and system time that a process has used, with all its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def unique(prefix: str) -> str:
    return f"{prefix}-{uuid4().hex[:10]}"


class ServerProcess:
    """A scheduler in its own process, on a loopback port that survives a restart.

    ``command`` is the program with its options, without address and data folder. Not safe for concurrent use.
    """

    def __init__(
        self, data: Path, *, command: Sequence[str] | None = None, options: Sequence[str] = ()
    ) -> None:
        self.data = data
        self.command = tuple(command) if command is not None else scheduler_command()
        self.options = tuple(options)
        self.port = 0
        self.starts_s: list[float] = []
        self.starts_cpu_s: list[float] = []
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def log(self) -> str:
        path = self.data.with_suffix(".log")
        return path.read_text(errors="replace") if path.exists() else ""

    def launch(self) -> subprocess.Popen[bytes]:
        """Start the process without waiting for it to serve."""
        self.data.parent.mkdir(parents=True, exist_ok=True)
        port_file = self.data.with_suffix(".port")
        port_file.unlink(missing_ok=True)
        with self.data.with_suffix(".log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *self.command,
                    *("--data", str(self.data)),
                    *("--listen", f"127.0.0.1:{self.port}"),
                    *("--port-file", str(port_file)),
                    *self.options,
                ],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        return self._process

    def start(self, *, timeout_s: float = 30.0) -> None:
        began = time.time()
        process = self.launch()
        port_file = self.data.with_suffix(".port")

        def listening() -> int:
            if process.poll() is not None:
                raise AssertionError(f"the server ended with {process.returncode}:\n{self.log[-4000:]}")
            text = port_file.read_text().strip() if port_file.exists() else ""
            return int(text.rpartition(":")[2]) if text else 0

        self.port = eventually(listening, "the server listens", timeout_s=timeout_s, every_s=0.005)
        with grpc.insecure_channel(self.address) as channel:
            stub = TaskHubSidecarServiceStub(channel)
            stub.Hello(empty_pb2.Empty(), wait_for_ready=True, timeout=timeout_s)
        # By the file's own time: this process may have been too busy to look.
        self.starts_s.append(port_file.stat().st_mtime - began)
        self.starts_cpu_s.append(cpu_s(process.pid))

    def kill(self) -> None:
        """SIGKILL: what a power cut looks like to everything above the file system."""
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """SIGTERM, and SIGKILL when that does not end it. Returns the exit status."""
        return self._end(signal.SIGTERM)

    def restart(self) -> None:
        self.kill()
        self.start()

    def _end(self, number: signal.Signals) -> int:
        process, self._process = self._process, None
        if process is None:
            return 0
        if process.poll() is None:
            process.send_signal(number)
        try:
            return process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait(10)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def scheduler_command() -> tuple[str, ...]:
    """The server under test; ``TOWLINE_CONFORMANCE_BACKEND=memory`` shows that the suite can fail."""
    if on_memory_backend():
        return (sys.executable, "-m", "tests.conformance.memory_backend")
    return (sys.executable, "-m", "towline.scheduler")


def on_memory_backend() -> bool:
    return os.environ.get("TOWLINE_CONFORMANCE_BACKEND") == "memory"


class Hub:
    """One task hub of one server: stock clients and workers, stopped by ``close``."""

    def __init__(self, server: ServerProcess, name: str | None = None) -> None:
        self.server = server
        self.name = name if name is not None else unique("hub")
        self._exits = contextlib.ExitStack()

    @property
    def metadata(self) -> list[tuple[str, str]]:
        return [("taskhub", self.name)]

    def client(self) -> TaskHubGrpcClient:
        made = TaskHubGrpcClient(
            host_address=self.server.address,
            metadata=self.metadata,
            logger=QUIET,
            channel_options=FAST_CHANNEL,
        )
        self._exits.callback(made.close)
        return made

    def worker(
        self,
        *,
        orchestrators: Sequence[Callable[..., object]] = (),
        activities: Sequence[Callable[..., object]] = (),
        entities: Sequence[object] = (),
        concurrency: ConcurrencyOptions | None = None,
        versioning: VersioningOptions | None = None,
        filters: bool = False,
        start: bool = True,
    ) -> TaskHubGrpcWorker:
        made = TaskHubGrpcWorker(
            host_address=self.server.address,
            metadata=self.metadata,
            logger=QUIET,
            channel_options=FAST_CHANNEL,
            resiliency_options=FAST_RECONNECT,
            concurrency_options=concurrency,
        )
        for orchestrator in orchestrators:
            made.add_orchestrator(orchestrator)
        for activity in activities:
            made.add_activity(activity)
        for entity in entities:
            made.add_entity(entity)  # type: ignore[arg-type]
        if versioning is not None:
            made.use_versioning(versioning)
        if filters:
            made.use_work_item_filters()
        if start:
            made.start()
        self._exits.callback(made.stop)
        return made

    def stub(self) -> TaskHubSidecarServiceStub:
        """The protocol itself, for what the stock client cannot ask."""
        return TaskHubSidecarServiceStub(self._channel())

    def hand_worker(
        self, *, orchestrations: int = 100, activities: int = 100, entities: int = 100
    ) -> HandWorker:
        made = HandWorker(
            self._channel(),
            pb.GetWorkItemsRequest(
                maxConcurrentOrchestrationWorkItems=orchestrations,
                maxConcurrentActivityWorkItems=activities,
                maxConcurrentEntityWorkItems=entities,
            ),
        )
        self._exits.callback(made.close)
        return made

    def _channel(self) -> grpc.Channel:
        options = [*FAST_CHANNEL.raw_options, ("grpc.use_local_subchannel_pool", 1)]
        channel = grpc.insecure_channel(self.server.address, options=options)
        self._exits.callback(channel.close)
        return grpc.intercept_channel(channel, _WithMetadata(self.metadata))

    def close(self) -> None:
        self._exits.close()


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


class _CallDetails(grpc.ClientCallDetails):
    def __init__(self, base: grpc.ClientCallDetails, metadata: list[tuple[str, str]]) -> None:
        self.method = base.method
        self.timeout = base.timeout
        self.metadata = [*(base.metadata or ()), *metadata]
        self.credentials = base.credentials
        self.wait_for_ready = base.wait_for_ready
        self.compression = base.compression


class _WithMetadata(grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor):
    def __init__(self, metadata: list[tuple[str, str]]) -> None:
        self._metadata = metadata

    def intercept_unary_unary(self, continuation, client_call_details, request):  # type: ignore[no-untyped-def]
        return continuation(_CallDetails(client_call_details, self._metadata), request)

    def intercept_unary_stream(self, continuation, client_call_details, request):  # type: ignore[no-untyped-def]
        return continuation(_CallDetails(client_call_details, self._metadata), request)


@contextlib.contextmanager
def python_process(module: str, *arguments: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Another Python program of the suite (a worker to be killed, say), ended on the way out."""
    with log.open("ab") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait(10)


def loopback_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
