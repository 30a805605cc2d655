"""A page of the file goes bad: what is on it is lost, and nothing else stops."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta

import grpc
import pytest
from durabletask.internal import orchestrator_service_pb2 as pb
from google.protobuf import wrappers_pb2
from tests.conformance.hand_worker import HandWorker, complete
from tests.conformance.hubs import Hub
from tests.conformance.processes import ServerProcess

PAGE_BYTES = 4096
MARK = "MARKED"


def soon() -> pb.CreateTimerAction:
    action = pb.CreateTimerAction()
    action.fireAt.FromDatetime(datetime.now(UTC) + timedelta(seconds=3))
    return action


WAITS_FOR = {
    "timer": lambda: pb.OrchestratorAction(id=1, createTimer=soon()),
    "activity": lambda: pb.OrchestratorAction(id=1, scheduleTask=pb.ScheduleTaskAction(name="charge")),
    "child": lambda: pb.OrchestratorAction(
        id=1, createSubOrchestration=pb.CreateSubOrchestrationAction(instanceId="child", name="x")
    ),
    "entity": lambda: pb.OrchestratorAction(
        id=1,
        sendEntityMessage=pb.SendEntityMessageAction(
            entityOperationCalled=pb.EntityOperationCalledEvent(
                requestId="r", operation="add", targetInstanceId=wrappers_pb2.StringValue(value="@e@one")
            )
        ),
    ),
}


def start(hub: Hub, instance_id: str) -> None:
    hub.stub().StartInstance(pb.CreateInstanceRequest(instanceId=instance_id, name="x"), timeout=10)


def finish(hand: HandWorker, hub: Hub, *instance_ids: str) -> None:
    for instance_id in instance_ids:
        start(hub, instance_id)
        hand.answer_turn(hand.next("orchestratorRequest"), complete())


def damage(server: ServerProcess) -> None:
    """Overwrite the page of the table of instances that has the marked one."""
    path = server.data / "scheduler.db"
    content = path.read_bytes()
    leaf_of_a_table = 0x0D
    (at,) = (
        at
        for at in range(0, len(content), PAGE_BYTES)
        if content[at] == leaf_of_a_table
        and b"victim" in content[at : at + PAGE_BYTES]
        and MARK.encode() in content[at : at + PAGE_BYTES]
    )
    with path.open("r+b") as file:
        file.seek(at)
        file.write(b"\xff" * PAGE_BYTES)
    with closing(sqlite3.connect(path)) as connection, pytest.raises(sqlite3.DatabaseError):
        connection.execute("SELECT * FROM instance WHERE id='victim'").fetchall()


@pytest.fixture(params=WAITS_FOR)
def damaged(own_server: ServerProcess, request: pytest.FixtureRequest) -> Iterator[Hub]:
    """A server whose file has a run that waits for something and can't be read."""
    hub = Hub(own_server)
    hand = hub.hand_worker()
    finish(hand, hub, *(f"before-{number}" for number in range(60)))
    start(hub, "victim")
    turn = hand.next("orchestratorRequest")
    hand.stub.CompleteOrchestratorTask(
        pb.OrchestratorResponse(
            instanceId="victim",
            completionToken=turn.completionToken,
            actions=[WAITS_FOR[request.param]()],
            customStatus=wrappers_pb2.StringValue(value=MARK * 3_000),
        ),
        timeout=10,
    )
    hand.close()
    hand = hub.hand_worker(orchestrations=100, activities=1, entities=1)
    for number in range(60):
        start(hub, f"after-{number}")
    for item in hand.drain(quiet_s=0.5):
        if item.orchestratorRequest.instanceId.startswith("after"):
            hand.answer_turn(item, complete())
    hub.close()
    own_server.stop()
    damage(own_server)
    own_server.start()
    hub = Hub(own_server, hub.name)
    yield hub
    hub.close()


def test_what_a_damaged_run_waits_for_comes_and_the_others_go_on(
    damaged: Hub, own_server: ServerProcess
) -> None:
    """Each time that it could not be told, all that was not on disk was undone; a timer stopped all else."""
    hand = damaged.hand_worker()
    over = time.monotonic() + 8
    done: list[str] = []
    answered = number = 0
    while time.monotonic() < over:
        start(damaged, f"other-{number}")
        number += 1
        for item in hand.drain(quiet_s=0.1):
            if item.HasField("orchestratorRequest"):
                instance_id = item.orchestratorRequest.instanceId
                with suppress(*([grpc.RpcError] if instance_id == "child" else [])):
                    hand.answer_turn(item, complete())
                    done.append(instance_id)
                answered += instance_id == "child"
            elif item.HasField("activityRequest"):
                with suppress(grpc.RpcError):
                    hand.answer_activity(item)
                answered += 1
            elif item.HasField("entityRequest"):
                result = pb.EntityBatchResult(completionToken=item.completionToken)
                result.results.add().success.SetInParent()
                with suppress(grpc.RpcError):
                    hand.stub.CompleteEntityTask(result, timeout=10)
                answered += 1

    assert [one for one in done if one.startswith("other")] == [f"other-{one}" for one in range(number)]
    events = [json.loads(line)["event"] for line in own_server.log.splitlines() if line.startswith("{")]
    assert "runtime.reset" not in events
    assert answered <= 10, "what it has asked for is done again and again, at full speed"


@pytest.mark.parametrize("damaged", ["timer"], indirect=True)
def test_a_question_about_a_damaged_run_is_answered_with_the_file_and_what_to_do_and_undoes_nothing(
    damaged: Hub, own_server: ServerProcess
) -> None:
    stub, victim = damaged.stub(), {"instanceId": "victim"}
    questions = {
        "GetInstance": pb.GetInstanceRequest(**victim),
        "WaitForInstanceStart": pb.GetInstanceRequest(**victim),
        "QueryInstances": pb.QueryInstancesRequest(),
        "RaiseEvent": pb.RaiseEventRequest(**victim, name="e"),
        "TerminateInstance": pb.TerminateRequest(**victim),
        "SuspendInstance": pb.SuspendRequest(**victim),
        "ResumeInstance": pb.ResumeRequest(**victim),
        "RewindInstance": pb.RewindInstanceRequest(**victim),
        "RestartInstance": pb.RestartInstanceRequest(**victim),
        "PurgeInstances": pb.PurgeInstancesRequest(**victim),
    }
    for method, request in questions.items():
        with pytest.raises(grpc.RpcError) as refused:
            getattr(stub, method)(request, timeout=10)
        said = f"{own_server.data / 'scheduler.db'} is damaged: "
        assert refused.value.code() is grpc.StatusCode.DATA_LOSS, method  # type: ignore[attr-defined]
        assert refused.value.details().startswith(said), method  # type: ignore[attr-defined]
        assert "put a backup in its place" in refused.value.details(), method  # type: ignore[attr-defined]
    events = [json.loads(line)["event"] for line in own_server.log.splitlines() if line.startswith("{")]
    assert not {"runtime.reset", "engine.bug"} & set(events)
