"""Sizes: nothing too large may hang a run or break a worker's stream."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
import pytest
from durabletask import entities, task
from durabletask.client import OrchestrationQuery, OrchestrationStatus
from durabletask.entities import EntityInstanceId
from durabletask.internal import orchestrator_service_pb2 as pb
from google.protobuf import wrappers_pb2
from tests.conformance.hand_worker import complete
from tests.conformance.hubs import Hub
from tests.conformance.support import unique

Turns = Any
LARGE = "x" * 300_000


def small(_: task.OrchestrationContext, __: object) -> str:
    return "ok"


def assert_still_served(hub: Hub) -> None:
    sdk = hub.client()
    state = sdk.wait_for_orchestration_completion(sdk.schedule_new_orchestration(small), timeout=10)
    assert state is not None
    assert state.get_output(str) == "ok", "the worker's stream is broken"


def test_a_history_too_large_for_a_worker_fails_its_instance_readably(hub: Hub) -> None:
    def run(ctx: task.OrchestrationContext, _: object) -> Turns:
        total = 0
        for _number in range(20):
            total += len((yield ctx.call_activity(large)))
        return total

    def large(_: task.ActivityContext, __: object) -> str:
        return LARGE

    hub.worker(orchestrators=[run, small], activities=[large])
    sdk = hub.client()
    instance = sdk.schedule_new_orchestration(run)

    ended = sdk.wait_for_orchestration_completion(instance, timeout=30)

    assert ended is not None
    assert ended.runtime_status == OrchestrationStatus.FAILED
    assert ended.failure_details is not None
    assert "bytes" in ended.failure_details.message
    assert_still_served(hub)
    assert len(sdk.get_orchestration_history(instance)) > 20


def test_a_worker_that_fetches_histories_gets_a_turn_whose_history_is_larger_than_a_message(hub: Hub) -> None:
    hand = hub.hand_worker(fetches_history=True)
    instance = unique("run")
    hand.stub.StartInstance(pb.CreateInstanceRequest(instanceId=instance, name="by-hand"), timeout=5)
    hand.answer_turn(hand.next("orchestratorRequest"))
    for _ in range(20):
        data = wrappers_pb2.StringValue(value=f'"{LARGE}"')
        hand.stub.RaiseEvent(pb.RaiseEventRequest(instanceId=instance, name="more", input=data), timeout=5)
        last = hand.next("orchestratorRequest")
        hand.answer_turn(last)
    hand.stub.RaiseEvent(pb.RaiseEventRequest(instanceId=instance, name="end"), timeout=5)

    turn = hand.next("orchestratorRequest")

    request = turn.orchestratorRequest
    assert request.requiresHistoryStreaming
    assert not request.pastEvents
    asked = pb.StreamInstanceHistoryRequest(instanceId=instance, forWorkItemProcessing=True)

    def fetched(token: str) -> list[pb.HistoryEvent]:
        chunks = hand.stub.StreamInstanceHistory(asked, timeout=5, metadata=[("x-completion-token", token)])
        return [event for chunk in chunks for event in chunk.events]

    past = fetched(turn.completionToken)
    assert sum(event.HasField("eventRaised") for event in past) == 20
    assert past[0].timestamp.ToNanoseconds() < request.newEvents[0].timestamp.ToNanoseconds()
    with pytest.raises(grpc.RpcError) as refused:
        fetched(last.completionToken)
    assert refused.value.code() == grpc.StatusCode.NOT_FOUND, (
        "whose turn it was may not replay what came since"
    )
    hand.answer_turn(turn, complete())
    with pytest.raises(grpc.RpcError):
        fetched(turn.completionToken)


def test_an_entity_state_too_large_for_a_worker_fails_the_operation_and_is_kept(hub: Hub) -> None:
    def store(ctx: entities.EntityContext, size: int) -> int:
        if ctx.operation == "grow":
            ctx.set_state("y" * size)
        return len(ctx.get_state(str, ""))

    def run(ctx: task.OrchestrationContext, key: str) -> Turns:
        entity = EntityInstanceId("store", key)
        try:
            yield ctx.call_entity(entity, "grow", 5_000_000)
            yield ctx.call_entity(entity, "size")
        except task.TaskFailedError as failure:
            return failure.details.message
        return None

    hub.worker(orchestrators=[run, small], entities=[store])
    sdk = hub.client()
    instance = sdk.schedule_new_orchestration(run, input=unique("key"))

    ended = sdk.wait_for_orchestration_completion(instance, timeout=30)

    assert ended is not None
    assert ended.get_output(str), "an entity of 5 MB can't be dispatched, yet the call succeeded"
    assert_still_served(hub)


@pytest.mark.parametrize("call", ["start", "event", "signal"])
def test_an_oversize_input_is_refused_at_the_door(hub: Hub, call: str) -> None:
    stub = hub.stub()
    too_large = wrappers_pb2.StringValue(value="z" * 8_000_000)
    instance = unique("run")
    stub.StartInstance(pb.CreateInstanceRequest(instanceId=instance, name="waits"), timeout=5)
    calls: dict[str, Callable[[], object]] = {
        "start": lambda: stub.StartInstance(
            pb.CreateInstanceRequest(instanceId=unique("large"), name="waits", input=too_large), timeout=10
        ),
        "event": lambda: stub.RaiseEvent(
            pb.RaiseEventRequest(instanceId=instance, name="event", input=too_large), timeout=10
        ),
        "signal": lambda: stub.SignalEntity(
            pb.SignalEntityRequest(instanceId="@store@key", name="set", input=too_large), timeout=10
        ),
    }

    with pytest.raises(grpc.RpcError) as refused:
        calls[call]()

    code = refused.value.code()  # type: ignore[attr-defined]
    assert code in {grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.INVALID_ARGUMENT}


def test_a_message_over_the_receive_limit_is_never_taken_in(hub: Hub) -> None:
    """The transport has to refuse it: whoever reads it whole to measure it has lost already."""
    payload = wrappers_pb2.StringValue(value="z" * (64 << 20))
    request = pb.CreateInstanceRequest(instanceId="large", name="x", input=payload)
    with pytest.raises(grpc.RpcError) as refused:
        hub.stub().StartInstance(request, timeout=30)

    assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED  # type: ignore[attr-defined]
    assert "received message larger than max" in refused.value.details().lower()  # type: ignore[attr-defined]


def test_a_query_with_large_inputs_comes_in_pages_that_the_client_can_take(hub: Hub) -> None:
    sdk = hub.client()
    made = {sdk.schedule_new_orchestration("nobody", input=LARGE) for _ in range(24)}

    states = sdk.get_all_orchestration_states(OrchestrationQuery(fetch_inputs_and_outputs=True))

    assert {state.instance_id for state in states} == made
    assert len(states) == len(made)
    assert all(state.get_input(str) == LARGE for state in states)


def test_a_large_result_within_the_limit_arrives_byte_for_byte(hub: Hub) -> None:
    text = "ä\u0000\u2028" + "z" * 1_000_000

    def run(ctx: task.OrchestrationContext, _: object) -> Turns:
        return (yield ctx.call_activity(produce))

    def produce(_: task.ActivityContext, __: object) -> str:
        return text

    hub.worker(orchestrators=[run], activities=[produce])
    sdk = hub.client()
    state = sdk.wait_for_orchestration_completion(sdk.schedule_new_orchestration(run), timeout=15)

    assert state is not None
    assert state.get_output(str) == text
