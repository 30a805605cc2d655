"""What is done with is freed at once, and not left to the garbage collector."""

from __future__ import annotations

import gc
import json
import weakref
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import durabletask.internal.helpers as ph
import durabletask.internal.orchestrator_service_pb2 as pb
import pytest
from agent_framework import Agent, ResponseStream
from agent_framework_durabletask import DurableAIAgentOrchestrationContext, DurableAIAgentWorker
from durabletask.task import when_all
from tests.unit.worker.simulator import make_worker

from towline.contracts.durable import DECISION_EVENT, RaisedCommand, RunEnvelope, wrap_input
from towline.testing.scripted import ScriptedChatClient
from towline.worker import sdk
from towline.worker.dispatcher import Keeper, KeeperOptions

TURNS = 20
LEFT_BY_THE_FRAMEWORK = 10
"""Objects of a turn that Agent Framework leaves to the collector still: six, of some two hundred."""


@pytest.fixture(autouse=True)
def installed() -> None:
    sdk.install_releases()


@contextmanager
def without_collector() -> Generator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def make_agent() -> Agent:
    return Agent(client=ScriptedChatClient("six words, one after the other"), name="Writer")


def approved(context: Any, _: Any) -> Generator[Any, Any, Any]:
    return (yield context.wait_for_external_event("HumanApproval"))


def returns(_context: Any, _: Any) -> str:
    return "at once"


def first_turn(name: str) -> pb.OrchestratorRequest:
    envelope = RunEnvelope(run_id="run-1", run_type=name)
    started = ph.new_execution_started_event(name, "run-1", json.dumps(wrap_input(envelope, None)))
    return pb.OrchestratorRequest(
        instanceId="run-1", newEvents=[ph.new_orchestrator_started_event(), started]
    )


def next_turn(request: pb.OrchestratorRequest, event: pb.HistoryEvent) -> pb.OrchestratorRequest:
    return pb.OrchestratorRequest(
        instanceId="run-1",
        pastEvents=[*request.newEvents, ph.new_orchestrator_completed_event()],
        newEvents=[ph.new_orchestrator_started_event(), event],
    )


def decision() -> pb.HistoryEvent:
    command = RaisedCommand(command_id="c-1", kind="decision", name="HumanApproval", approved=True)
    return ph.new_event_raised_event(DECISION_EVENT, command.model_dump_json())


def native_event() -> pb.HistoryEvent:
    return ph.new_event_raised_event("HumanApproval", json.dumps({"approved": True}))


def take_turns(keeper: Keeper, requests: list[pb.OrchestratorRequest], *, goes_on: bool) -> weakref.ref[Any]:
    """Take the turns one after the other; the context of the last one's orchestration."""
    carried: Any = None
    for request in requests:
        turn = keeper._worker.begin_turn(request)
        carried = keeper.carry_out(turn, request, "token")
        keeper.keep(request, carried, 0.0)
    assert carried.goes_on == goes_on
    return weakref.ref(carried.orchestration.context)


@pytest.mark.parametrize(
    ("code", "event"), [(returns, None), (approved, decision()), (approved, native_event())]
)
def test_an_orchestration_that_has_ended_is_gone(code: Any, event: pb.HistoryEvent | None) -> None:
    worker = make_worker()
    worker.add_orchestrator(code)
    keeper = Keeper(worker, KeeperOptions(replay="never"))
    requests = [first_turn(code.__name__)]
    if event is not None:
        requests.append(next_turn(requests[0], event))

    with without_collector():
        context = take_turns(keeper, requests, goes_on=False)
        assert keeper.turns == ({"replayed": 1} if event is None else {"replayed": 1, "kept": 1})
        assert context() is None
        assert gc.collect() == 0


def answers(context: Any, _: Any) -> Generator[Any, Any, str]:
    agent = DurableAIAgentOrchestrationContext(context).get_agent("Writer")
    both = [agent.run(text, session=agent.create_session()) for text in ("write", "and again")]
    responses = yield when_all(both)
    return str(responses)


@pytest.mark.parametrize("code", [approved, answers])
def test_an_orchestration_that_is_let_go_is_gone(code: Any) -> None:
    worker = make_worker()
    worker.add_orchestrator(code)
    keeper = Keeper(worker, KeeperOptions(replay="never"))

    with without_collector():
        context = take_turns(keeper, [first_turn(code.__name__)], goes_on=True)
        assert context() is not None
        keeper.close()
        assert context() is None
        assert gc.collect() == 0


async def test_a_streamed_turn_is_gone_with_its_stream() -> None:
    agent = make_agent()

    async def turn() -> None:
        stream = agent.run("write", stream=True)
        async for _ in stream:
            pass
        response = await stream.get_final_response()
        assert response.text

    await turn()
    with without_collector():
        for _ in range(TURNS):
            await turn()
        assert gc.collect() <= TURNS * LEFT_BY_THE_FRAMEWORK


async def test_a_stream_s_hooks_run_once_and_in_order() -> None:
    told: list[str] = []

    async def updates() -> Any:
        yield "a"

    async def later() -> None:
        told.append("later")

    stream: Any = ResponseStream(updates(), finalizer=lambda parts: "".join(parts))
    stream = stream.with_cleanup_hook(lambda: told.append("first")).with_cleanup_hook(later)
    assert [update async for update in stream] == ["a"]
    assert await stream.get_final_response() == "a"
    assert told == ["first", "later"]


def test_an_agent_s_batch_is_gone_with_its_answer() -> None:
    worker = make_worker()
    DurableAIAgentWorker(worker).add_agent(make_agent())
    operation = pb.OperationRequest(operation="run", requestId="1")
    operation.input.value = json.dumps({"message": "write", "correlationId": "c-1"})
    request = pb.EntityBatchRequest(instanceId="@dafx-writer@s-1", operations=[operation])

    def batch() -> None:
        (result,) = sdk.execute_entity_batch(worker, request, "token").message.results
        assert "six words" in result.success.result.value

    batch()
    with without_collector():
        for _ in range(TURNS):
            batch()
        assert gc.collect() <= TURNS * LEFT_BY_THE_FRAMEWORK
