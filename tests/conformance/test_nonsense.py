"""Whatever arrives: the server answers, keeps its state and serves the next."""

from __future__ import annotations

import os
import random
from typing import Any

import grpc
import pytest
from durabletask.internal import orchestrator_service_pb2 as pb
from google.protobuf import empty_pb2
from google.protobuf.descriptor import FieldDescriptor
from tests.conformance.hand_worker import HandWorker, complete
from tests.conformance.hubs import Hub
from tests.conformance.processes import ServerProcess
from tests.conformance.support import unique

STRINGS = (
    "",
    "a",
    "@",
    "@@",
    "@e@k",
    "@E@k@x",
    "run",
    "x" * 300,
    "ä\u0000",
    "1:2:3",
    "a:1:1:zz",
    '{"a":',
    "null",
)
NUMBERS = (0, 1, 2, 3, -1, 7, 100, 2**31 - 1, -(2**31))
CALLS: tuple[tuple[str, Any], ...] = (
    ("StartInstance", pb.CreateInstanceRequest),
    ("GetInstance", pb.GetInstanceRequest),
    ("RaiseEvent", pb.RaiseEventRequest),
    ("TerminateInstance", pb.TerminateRequest),
    ("SuspendInstance", pb.SuspendRequest),
    ("ResumeInstance", pb.ResumeRequest),
    ("RewindInstance", pb.RewindInstanceRequest),
    ("RestartInstance", pb.RestartInstanceRequest),
    ("PurgeInstances", pb.PurgeInstancesRequest),
    ("QueryInstances", pb.QueryInstancesRequest),
    ("ListInstanceIds", pb.ListInstanceIdsRequest),
    ("SignalEntity", pb.SignalEntityRequest),
    ("GetEntity", pb.GetEntityRequest),
    ("QueryEntities", pb.QueryEntitiesRequest),
    ("CleanEntityStorage", pb.CleanEntityStorageRequest),
    ("CompleteOrchestratorTask", pb.OrchestratorResponse),
    ("CompleteActivityTask", pb.ActivityResponse),
    ("CompleteEntityTask", pb.EntityBatchResult),
    ("AbandonTaskActivityWorkItem", pb.AbandonActivityTaskRequest),
    ("AbandonTaskOrchestratorWorkItem", pb.AbandonOrchestrationTaskRequest),
    ("AbandonTaskEntityWorkItem", pb.AbandonEntityTaskRequest),
    ("SkipGracefulOrchestrationTerminations", pb.SkipGracefulOrchestrationTerminationsRequest),
)


def scalar(field: FieldDescriptor, dice: random.Random) -> object:
    if field.type == FieldDescriptor.TYPE_STRING:
        return dice.choice(STRINGS)
    if field.type == FieldDescriptor.TYPE_BOOL:
        return dice.random() < 0.5
    if field.type == FieldDescriptor.TYPE_ENUM:
        return dice.choice([value.number for value in field.enum_type.values])
    if field.cpp_type in {FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT}:
        return dice.uniform(-1e9, 1e9)
    return dice.choice(NUMBERS)


def scramble(message: Any, dice: random.Random, depth: int = 0) -> Any:
    """Set about half of the fields to something that fits their type and nothing else."""
    for field in message.DESCRIPTOR.fields:
        if dice.random() < 0.5 or depth > 4:
            continue
        repeated = field.is_repeated
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            continue
        if field.message_type is not None:
            for _ in range(dice.randint(1, 3) if repeated else 1):
                inner = getattr(message, field.name)
                scramble(inner.add() if repeated else inner, dice, depth + 1)
                if not repeated:
                    inner.SetInParent()
        elif repeated:
            getattr(message, field.name).extend(scalar(field, dice) for _ in range(dice.randint(0, 3)))
        else:
            setattr(message, field.name, scalar(field, dice))
    return message


@pytest.fixture
def dice() -> random.Random:
    seed = int(os.environ.get("TOWLINE_TEST_SEED") or random.randrange(1_000_000))
    print(f"seed {seed}")
    return random.Random(seed)


def assert_sound(server: ServerProcess, hub: Hub) -> None:
    """No bug was logged, and a run still goes from start to end."""
    hub.stub().Hello(empty_pb2.Empty(), timeout=5)
    traces = [line for line in server.log.splitlines() if "Traceback" in line or "engine.bug" in line]
    assert traces == [], server.log[-3000:]
    fresh = Hub(server)
    try:
        hand = fresh.hand_worker()
        instance = unique("run")
        hand.stub.StartInstance(pb.CreateInstanceRequest(instanceId=instance, name="sound"), timeout=5)
        hand.answer_turn(hand.next("orchestratorRequest"), complete())
        state = fresh.client().wait_for_orchestration_completion(instance, timeout=5)
        assert state is not None
    finally:
        fresh.close()


def test_calls_that_make_no_sense_are_answered(
    own_server: ServerProcess, own_hub: Hub, dice: random.Random
) -> None:
    stub = own_hub.stub()
    codes: set[grpc.StatusCode] = set()
    for _ in range(1200):
        name, kind = dice.choice(CALLS)
        try:
            getattr(stub, name)(scramble(kind(), dice), timeout=10)
        except grpc.RpcError as error:
            codes.add(error.code())  # type: ignore[attr-defined]

    assert codes <= {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.ALREADY_EXISTS,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    }
    assert_sound(own_server, own_hub)


def answer_with_nonsense(hand: HandWorker, item: pb.WorkItem, dice: random.Random) -> None:
    kind = item.WhichOneof("request")
    if kind == "orchestratorRequest":
        response = scramble(pb.OrchestratorResponse(), dice)
        response.instanceId = item.orchestratorRequest.instanceId
        response.completionToken = item.completionToken
        hand.stub.CompleteOrchestratorTask(response, timeout=10)
    elif kind == "activityRequest":
        result = scramble(pb.ActivityResponse(), dice)
        result.completionToken = item.completionToken
        hand.stub.CompleteActivityTask(result, timeout=10)
    else:
        batch = scramble(pb.EntityBatchResult(), dice)
        batch.completionToken = item.completionToken
        hand.stub.CompleteEntityTask(batch, timeout=10)


def test_answers_that_make_no_sense_leave_no_run_without_work(
    own_server: ServerProcess, own_hub: Hub, dice: random.Random
) -> None:
    """A worker of another version, or a broken one, may send anything that parses."""
    hand = own_hub.hand_worker()
    for number in range(150):
        hand.stub.StartInstance(
            pb.CreateInstanceRequest(instanceId=f"run-{number}", name="scrambled"), timeout=5
        )
        request = pb.SignalEntityRequest(
            instanceId=f"@scrambled@{number}", name="op", requestId=unique("request")
        )
        hand.stub.SignalEntity(request, timeout=5)
    for _ in range(1000):
        try:
            item = hand.next(timeout_s=0.5)
        except AssertionError:
            break
        answer_with_nonsense(hand, item, dice)

    assert_sound(own_server, own_hub)
    own_server.restart()
    assert_sound(own_server, own_hub)
