"""Every work item is answered, whatever the code in it raises: one that is not is worked at for hours."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from agent_framework import Agent
from agent_framework_durabletask import DurableAIAgentWorker
from durabletask.internal import orchestrator_service_pb2 as pb
from tests.integration.worker.test_stream import Listening, dispatching
from tests.waiting import eventually_async

from towline.testing.scripted import Reply, ScriptedChatClient, ToolCall
from towline.worker.agents import ObservedAgent
from towline.worker.app import App
from towline.worker.worker import TowlineWorker


class UnspeakableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no message")


TROUBLE: dict[str, BaseException] = {
    "unspeakable": UnspeakableError(),
    "half_a_pair": ValueError("the model said \ud83d"),
    "exits": SystemExit(2),
    "cancels": asyncio.CancelledError(),
}
trouble = pytest.mark.parametrize("kind", TROUBLE)


def activity(name: str, token: str) -> pb.WorkItem:
    return pb.WorkItem(completionToken=token, activityRequest=pb.ActivityRequest(name=name, taskId=1))


@trouble
async def test_an_activity_is_answered_whatever_it_raises(kind: str) -> None:
    def breaks(_context: Any, _: Any) -> None:
        raise TROUBLE[kind]

    service = Listening(activity("breaks", "broken"), activity("length", "another"))
    async with dispatching(service, set_up=lambda worker: worker.add_activity(breaks)) as made:
        await eventually_async(lambda: len(service.answers) == 2)
        assert made.is_alive
    assert service.answers["broken"].failureDetails.errorMessage


@trouble
async def test_an_operation_of_an_entity_is_answered_whatever_it_raises(kind: str) -> None:
    def brittle(_context: Any, _: Any) -> None:
        raise TROUBLE[kind]

    def set_up(worker: TowlineWorker) -> None:
        worker.add_entity(brittle)

    operation = pb.OperationRequest(operation="touch", requestId="1")
    batch = pb.EntityBatchRequest(instanceId="@brittle@1", operations=[operation])
    service = Listening(pb.WorkItem(completionToken="broken", entityRequest=batch))
    async with dispatching(service, set_up=set_up) as made:
        await eventually_async(lambda: service.answers)
        assert made.is_alive
    (result,) = service.answers["broken"].results
    assert result.failure.failureDetails.errorMessage


@trouble
async def test_an_operation_that_fails_takes_no_other_of_its_batch_with_it(kind: str) -> None:
    def counts(context: Any, by: int) -> int:
        if by == 0:
            raise TROUBLE[kind]
        context.set_state(context.get_state(int, 0) + by)
        return context.get_state(int)

    operations = [pb.OperationRequest(operation="add", requestId=str(by)) for by in (1, 0, 2)]
    for operation in operations:
        operation.input.value = operation.requestId
    batch = pb.EntityBatchRequest(instanceId="@counts@1", operations=operations)
    service = Listening(pb.WorkItem(completionToken="token", entityRequest=batch))
    async with dispatching(service, set_up=lambda worker: worker.add_entity(counts)):
        await eventually_async(lambda: service.answers)
    answer = service.answers["token"]
    before, failed, after = answer.results
    assert (before.success.result.value, after.success.result.value) == ("1", "3")
    assert failed.failure.failureDetails.errorMessage
    assert answer.entityState.value == "3"


def asks(agent: str, token: str, *run_ids: str) -> pb.WorkItem:
    """A batch of an agent's entity: one message for each run; for none of Towline's, if none is named."""
    operations: list[pb.OperationRequest] = []
    for run_id in run_ids or (None,):
        options = {} if run_id is None else {"towline": {"run_id": run_id, "turn": "1"}}
        operation = pb.OperationRequest(operation="run", requestId=f"{token}/{run_id}")
        request = {"message": f"hi from {run_id}", "correlationId": "c", "options": options}
        operation.input.value = json.dumps(request)
        operations.append(operation)
    batch = pb.EntityBatchRequest(instanceId=f"@dafx-{agent.lower()}@{token}", operations=operations)
    return pb.WorkItem(completionToken=token, entityRequest=batch)


def agent_of(name: str, script: Any, *, streams: bool = True) -> ObservedAgent:
    agent = Agent(client=ScriptedChatClient(script), name=name)
    return ObservedAgent(agent, name, streams=streams)


stopping = pytest.mark.parametrize("stop", [SystemExit(2), asyncio.CancelledError()], ids=["exit", "cancel"])


@stopping
@pytest.mark.parametrize("streams", [True, False])
async def test_an_agent_whose_code_stops_its_own_task_has_failed_and_others_go_on(
    stop: BaseException, streams: bool
) -> None:
    def breaks(_: Any) -> str:
        raise stop

    def set_up(worker: TowlineWorker) -> None:
        agents = DurableAIAgentWorker(worker)
        agents.add_agent(agent_of("Breaks", breaks, streams=streams))
        agents.add_agent(agent_of("Echo", "still here"))

    service = Listening(asks("Breaks", "told", "run-1"), asks("Breaks", "untold"))
    async with dispatching(service, set_up=set_up):
        await eventually_async(lambda: len(service.answers) == 2)
        service.hand_out(asks("Echo", "after", "run-2"))
        await eventually_async(lambda: "after" in service.answers)
    (result,) = service.answers["told"].results
    assert "AgentStoppedError" in result.success.result.value
    (result,) = service.answers["untold"].results
    assert result.failure.failureDetails.errorType.endswith("AgentStoppedError")
    assert "still here" in service.answers["after"].results[0].success.result.value


class UnheardOfError(BaseException):
    """No Exception, as the groups of cancel scopes are none."""


@pytest.mark.parametrize(
    "stop", [SystemExit(2), UnheardOfError(), BaseExceptionGroup("of tasks", [SystemExit(2)])], ids=repr
)
async def test_a_tool_that_exits_fails_its_turn_and_other_agents_go_on(stop: BaseException) -> None:
    async def parses() -> str:
        raise stop

    client = ScriptedChatClient(Reply(tool_calls=(ToolCall("parses"), ToolCall("parses"))))

    def set_up(worker: TowlineWorker) -> None:
        agents = DurableAIAgentWorker(worker)
        agents.add_agent(ObservedAgent(Agent(client=client, name="Breaks", tools=[parses]), "Breaks"))
        agents.add_agent(agent_of("Echo", "still here"))

    service = Listening(asks("Breaks", "broken", "run-1"))
    async with dispatching(service, set_up=set_up):
        await eventually_async(lambda: service.answers)
        service.hand_out(asks("Echo", "after", "run-2"))
        await eventually_async(lambda: "after" in service.answers)
    assert "AgentStoppedError" in service.answers["broken"].results[0].success.result.value
    assert "still here" in service.answers["after"].results[0].success.result.value


@stopping
async def test_an_async_activity_that_stops_its_own_task_has_failed_and_agents_go_on(
    stop: BaseException,
) -> None:
    app = App("test")

    @app.activity
    async def breaks() -> None:
        raise stop

    app.agent(agent_of("Echo", "still here"))
    service = Listening(activity("breaks", "broken"))
    async with dispatching(service, set_up=app):
        await eventually_async(lambda: service.answers)
        service.hand_out(asks("Echo", "after", "run-1"))
        await eventually_async(lambda: "after" in service.answers)
    assert service.answers["broken"].failureDetails.errorType.endswith("AgentStoppedError")


def as_azure_has_it(item: pb.WorkItem) -> pb.WorkItem:
    """The batch in the form in which other schedulers send one: the events that called for it."""
    batch = item.entityRequest
    called = [
        pb.HistoryEvent(
            entityOperationCalled=pb.EntityOperationCalledEvent(
                requestId=operation.requestId, operation=operation.operation, input=operation.input
            )
        )
        for operation in batch.operations
    ]
    request = pb.EntityRequest(instanceId=batch.instanceId, operationRequests=called)
    return pb.WorkItem(completionToken=item.completionToken, entityRequestV2=request)


@pytest.mark.parametrize("form", [lambda item: item, as_azure_has_it], ids=["batch", "events"])
async def test_a_cancel_of_one_run_spares_the_others_in_the_batch_of_a_session(form: Any) -> None:
    begun = asyncio.Event()
    here = asyncio.get_running_loop()

    async def answers(call: Any) -> str:
        if "first" not in call.text:
            return "for another run"
        here.call_soon_threadsafe(begun.set)
        return await asyncio.Event().wait() or "never"

    def set_up(worker: TowlineWorker) -> None:
        DurableAIAgentWorker(worker).add_agent(agent_of("Echo", answers))

    service = Listening(form(asks("Echo", "shared", "first", "second")))
    async with dispatching(service, set_up=set_up) as made:
        await eventually_async(begun.is_set)
        made.cancel_agent_turns("first", ["1"], "no longer wanted")
        await eventually_async(lambda: service.answers)
    first, second = service.answers["shared"].results
    assert first.failure.failureDetails.errorType.endswith("AgentTurnCancelledError")
    assert "for another run" in second.success.result.value


async def test_an_agent_whose_code_cancels_its_own_task_is_answered_for() -> None:
    async def cancels(_: Any) -> str:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        return await asyncio.Event().wait() or "never"

    def set_up(worker: TowlineWorker) -> None:
        DurableAIAgentWorker(worker).add_agent(agent_of("Cancels", cancels))

    service = Listening(asks("Cancels", "broken", "run-1"))
    async with dispatching(service, set_up=set_up):
        await eventually_async(lambda: service.answers)
    (result,) = service.answers["broken"].results
    assert result.failure.failureDetails.errorType.endswith("AgentStoppedError")


async def test_a_message_to_an_agent_that_is_nested_beyond_reading_has_failed_and_the_agent_goes_on() -> None:
    deep = asks("Echo", "deep", "run-1")
    deep.entityRequest.operations[0].input.value = "[" * 100_000 + "]" * 100_000
    service = Listening(deep)
    async with dispatching(
        service, set_up=lambda worker: DurableAIAgentWorker(worker).add_agent(agent_of("Echo", "still here"))
    ):
        await eventually_async(lambda: service.answers)
        service.hand_out(asks("Echo", "after", "run-2"))
        await eventually_async(lambda: "after" in service.answers)
    (result,) = service.answers["deep"].results
    assert result.failure.failureDetails.errorType.endswith("RecursionError")
