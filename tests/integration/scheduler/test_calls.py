"""How calls end: refused, unknown, undecodable, given up by their caller."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator

import grpc
import pytest
from durabletask.internal import orchestrator_service_pb2 as pb
from durabletask.internal.orchestrator_service_pb2_grpc import TaskHubSidecarServiceStub
from google.protobuf.struct_pb2 import Struct
from tests.conformance.processes import ServerProcess
from tests.waiting import eventually


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with ServerProcess(tmp_path_factory.mktemp("calls") / "data") as process:
        yield process


@pytest.fixture
def channel(server: ServerProcess) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.address) as made:
        yield made


def stats(channel: grpc.Channel) -> Struct:
    return Struct.FromString(channel.unary_unary("/towline.scheduler.Admin/GetStats")(b"", timeout=10))


@pytest.mark.parametrize(
    ("path", "request_bytes", "code"),
    [
        ("/TaskHubSidecarService/NoSuchMethod", b"", grpc.StatusCode.UNIMPLEMENTED),
        ("/no.such.Service/Hello", b"", grpc.StatusCode.UNIMPLEMENTED),
        ("/TaskHubSidecarService/StartInstance", b"\xff\xff", grpc.StatusCode.INVALID_ARGUMENT),
        ("/TaskHubSidecarService/WaitForInstanceStart", b"\xff\xff", grpc.StatusCode.INVALID_ARGUMENT),
        ("/TaskHubSidecarService/QueryInstances", b"\xff\xff", grpc.StatusCode.INVALID_ARGUMENT),
    ],
)
def test_a_call_that_makes_no_sense_gets_its_status(
    channel: grpc.Channel, path: str, request_bytes: bytes, code: grpc.StatusCode
) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        channel.unary_unary(path)(request_bytes, timeout=10)

    assert refused.value.code() == code  # type: ignore[attr-defined]


@pytest.mark.parametrize("path", ["GetWorkItems", "StreamInstanceHistory"])
def test_a_stream_that_makes_no_sense_gets_its_status(channel: grpc.Channel, path: str) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        list(channel.unary_stream(f"/TaskHubSidecarService/{path}")(b"\xff\xff", timeout=10))

    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT  # type: ignore[attr-defined]


def test_nothing_is_left_of_waits_whose_callers_have_gone(channel: grpc.Channel) -> None:
    stub = TaskHubSidecarServiceStub(channel)
    stub.StartInstance(pb.CreateInstanceRequest(instanceId="waits", name="waits_for_nobody"), timeout=10)
    request = pb.GetInstanceRequest(instanceId="waits")
    waits = [stub.WaitForInstanceCompletion.future(request) for _ in range(20)]
    eventually(lambda: stats(channel)["waiters"] == 20)

    for wait in waits[:10]:
        wait.cancel()
    eventually(lambda: stats(channel)["waiters"] == 10)
    stub.TerminateInstance(pb.TerminateRequest(instanceId="waits"), timeout=10)

    assert [wait.result(10).exists for wait in waits[10:]] == [True] * 10
    assert stats(channel)["waiters"] == 0


def test_nothing_is_left_of_a_worker_that_hangs_up(channel: grpc.Channel) -> None:
    stub = TaskHubSidecarServiceStub(channel)
    stream = stub.GetWorkItems(pb.GetWorkItemsRequest())
    assert stream.initial_metadata() is not None
    eventually(lambda: stats(channel)["work_items"]["streams"] == 1)

    stream.cancel()

    eventually(lambda: stats(channel)["work_items"]["streams"] == 0)


def test_many_calls_at_once_are_all_answered(channel: grpc.Channel) -> None:
    stub = TaskHubSidecarServiceStub(channel)
    calls = [
        stub.StartInstance.future(pb.CreateInstanceRequest(instanceId=f"many-{number}", name="many"))
        for number in range(300)
    ]

    assert [call.result(30).instanceId for call in calls] == [f"many-{number}" for number in range(300)]


@pytest.mark.parametrize("size", [10, 30_000])
def test_a_burst_of_work_arrives_whole_and_in_order_however_large(channel: grpc.Channel, size: int) -> None:
    """They leave in series of limited size; a worker that reads slowly stops them in the midst."""
    stub = TaskHubSidecarServiceStub(channel)
    hub = (("taskhub", f"burst-{size}"),)
    ids = [f"burst-{size}-{number}" for number in range(60)]
    for instance in ids:
        request = pb.CreateInstanceRequest(instanceId=instance, name="any")
        request.input.value = f'"{instance}{"x" * size}"'
        stub.StartInstance(request, metadata=hub, timeout=10)

    stream = stub.GetWorkItems(pb.GetWorkItemsRequest(), metadata=hub)
    arrived: list[str] = []
    for item in stream:
        if item.HasField("orchestratorRequest"):
            arrived.append(item.orchestratorRequest.instanceId)
            started = item.orchestratorRequest.newEvents[1].executionStarted
            assert started.input.value == f'"{arrived[-1]}{"x" * size}"'
        if len(arrived) % 20 == 0:
            time.sleep(0.1)
        if len(arrived) == len(ids):
            break
    stream.cancel()

    assert arrived == ids


def test_a_worker_that_hangs_up_within_a_burst_loses_nothing(channel: grpc.Channel) -> None:
    stub = TaskHubSidecarServiceStub(channel)
    hub = (("taskhub", "hangs-up"),)
    ids = [f"hangs-up-{number}" for number in range(100)]
    for instance in ids:
        request = pb.CreateInstanceRequest(instanceId=instance, name="any")
        request.input.value = f'"{"x" * 20_000}"'
        stub.StartInstance(request, metadata=hub, timeout=10)

    for _ in range(5):
        stream = stub.GetWorkItems(pb.GetWorkItemsRequest(), metadata=hub)
        next(item for item in stream if item.HasField("orchestratorRequest"))
        stream.cancel()
    stream = stub.GetWorkItems(pb.GetWorkItemsRequest(), metadata=hub, timeout=30)
    work = (item.orchestratorRequest.instanceId for item in stream if item.HasField("orchestratorRequest"))
    arrived = list(itertools.islice(work, len(ids)))
    stream.cancel()

    assert sorted(arrived) == sorted(ids)
