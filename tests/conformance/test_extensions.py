"""What is built on the protocol: agents, schedules, history export and the managed client."""

from __future__ import annotations

import json
import threading
from collections.abc import AsyncIterable, Awaitable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from agent_framework import (
    Agent,
    BaseChatClient,
    ChatMiddlewareLayer,
    ChatResponse,
    ChatResponseUpdate,
    FunctionInvocationLayer,
    Message,
    ResponseStream,
)
from agent_framework_durabletask import DurableAIAgentOrchestrationContext, DurableAIAgentWorker
from durabletask import task
from durabletask.azuremanaged.client import DurableTaskSchedulerClient
from durabletask.azuremanaged.worker import DurableTaskSchedulerWorker
from durabletask.client import OrchestrationStatus
from durabletask.extensions.history_export import (
    ExportDestination,
    ExportFormat,
    ExportFormatKind,
    ExportHistoryClient,
    ExportJobCreationOptions,
    ExportJobStatus,
    ExportMode,
)
from durabletask.scheduled import ScheduleCreationOptions, ScheduledTaskClient, ScheduleStatus
from tests.conformance.hubs import FAST_RECONNECT, QUIET, Hub
from tests.conformance.support import unique
from tests.waiting import eventually

Turns = Any


class ScriptedClient(FunctionInvocationLayer, ChatMiddlewareLayer, BaseChatClient):  # type: ignore[misc]
    """A chat model that answers with what it was asked and how many messages it saw."""

    def _inner_get_response(
        self, *, messages: Sequence[Message], stream: bool, options: Mapping[str, Any], **_: Any
    ) -> Awaitable[ChatResponse] | ResponseStream[ChatResponseUpdate, ChatResponse]:
        text = f"{len(messages)}: {messages[-1].text}"
        now = datetime.now(UTC).isoformat()
        if stream:

            async def updates() -> AsyncIterable[ChatResponseUpdate]:
                yield ChatResponseUpdate(contents=[text], role="assistant", created_at=now)

            return ResponseStream(updates(), finalizer=ChatResponse.from_updates)

        async def answer() -> ChatResponse:
            return ChatResponse(messages=Message("assistant", [text]), response_id="scripted", created_at=now)

        return answer()


def test_an_agent_called_from_an_orchestration_keeps_its_conversation(hub: Hub) -> None:
    def conversation(ctx: task.OrchestrationContext, questions: list[str]) -> Turns:
        agent = DurableAIAgentOrchestrationContext(ctx).get_agent("echo")
        session = agent.create_session()
        answers = []
        for question in questions:
            response = yield agent.run(question, session=session)
            answers.append(response.text)
        return answers

    worker = hub.worker(orchestrators=[conversation], start=False)
    DurableAIAgentWorker(worker).add_agent(Agent(client=ScriptedClient(), name="echo"))
    worker.start()
    sdk = hub.client()
    instance = sdk.schedule_new_orchestration(conversation, input=["one", "two"])

    ended = sdk.wait_for_orchestration_completion(instance, timeout=20)

    assert ended is not None
    assert ended.runtime_status == OrchestrationStatus.COMPLETED, ended.failure_details
    assert ended.get_output(list) == ["1: one", "3: two"]


def test_a_schedule_runs_pauses_and_resumes(hub: Hub) -> None:
    ran: list[str] = []

    def tick(ctx: task.OrchestrationContext, value: str) -> str:
        ran.append(ctx.instance_id)
        return value

    worker = hub.worker(orchestrators=[tick], start=False)
    worker.configure_scheduled_tasks()
    worker.start()
    schedules = ScheduledTaskClient(hub.client(), operation_timeout=20)
    schedule = schedules.create_schedule(
        ScheduleCreationOptions(
            schedule_id=unique("schedule"),
            orchestration_name="tick",
            orchestration_input="tock",
            interval=timedelta(seconds=1),
            start_immediately_if_late=True,
        )
    )

    eventually(lambda: len(set(ran)) >= 2)
    schedule.pause()
    paused = schedule.describe()
    so_far = len(set(ran))
    threading.Event().wait(1.5)
    while_paused = len(set(ran))
    schedule.resume()
    eventually(lambda: len(set(ran)) > while_paused)
    schedule.delete()

    assert paused.status == ScheduleStatus.PAUSED
    assert while_paused <= so_far + 1  # one may have been on its way
    assert eventually(lambda: schedules.get_schedule(schedule.schedule_id) is None)


class KeptInMemory:
    """A destination of the history export."""

    def __init__(self) -> None:
        self.written: dict[str, bytes] = {}

    def write(self, *, instance_id: str, blob_name: str, payload: bytes, **_: object) -> None:
        self.written[instance_id] = payload


def test_the_history_of_finished_runs_is_exported(hub: Hub) -> None:
    def echo(ctx: task.OrchestrationContext, value: str) -> Turns:
        return (yield ctx.call_activity(shout, input=value))

    def shout(_: task.ActivityContext, value: str) -> str:
        return value.upper()

    sdk = hub.client()
    kept = KeptInMemory()
    exports = ExportHistoryClient(sdk, kept)  # type: ignore[arg-type]
    worker = hub.worker(orchestrators=[echo], activities=[shout], start=False)
    exports.register_worker(worker)
    worker.start()
    instances = [sdk.schedule_new_orchestration(echo, input=value) for value in ("a", "b", "c")]
    for instance in instances:
        sdk.wait_for_orchestration_completion(instance, timeout=20)
    now = datetime.now(UTC)

    made = exports.create_job(
        ExportJobCreationOptions(
            mode=ExportMode.BATCH,
            completed_time_from=now - timedelta(hours=1),
            completed_time_to=now + timedelta(hours=1),
            destination=ExportDestination(container="exports", prefix="all"),
            format=ExportFormat(kind=ExportFormatKind.JSON),
            max_instances_per_batch=2,
        )
    )
    done = exports.wait_for_job(made.job_id, timeout=30, poll_interval=0.1)

    assert done.status == ExportJobStatus.COMPLETED
    assert done.failed_instances == 0
    assert set(instances) <= set(kept.written)
    text = kept.written[instances[0]].decode()
    assert json.loads(text)
    for kind in ("executionStarted", "taskScheduled", "taskCompleted", "executionCompleted"):
        assert kind.lower() in text.lower(), f"{kind} is not in the exported history"


@pytest.mark.parametrize("taskhub", ["orders", "billing"])
def test_the_managed_client_and_worker_are_served(hub: Hub, taskhub: str) -> None:
    """``http://`` makes the managed classes speak plaintext although they ask for a secure channel."""

    def run(ctx: task.OrchestrationContext, _: object) -> Turns:
        return (yield ctx.call_activity(where))

    def where(_: task.ActivityContext, __: object) -> str:
        return taskhub

    endpoint = f"http://{hub.server.address}"
    worker = DurableTaskSchedulerWorker(
        host_address=endpoint,
        taskhub=taskhub,
        token_credential=None,
        logger=QUIET,
        resiliency_options=FAST_RECONNECT,
    )
    worker.add_orchestrator(run)
    worker.add_activity(where)
    worker.start()
    try:
        sdk = DurableTaskSchedulerClient(
            host_address=endpoint, taskhub=taskhub, token_credential=None, logger=QUIET
        )
        instance = sdk.schedule_new_orchestration(run)
        ended = sdk.wait_for_orchestration_completion(instance, timeout=15)
        sdk.close()
    finally:
        worker.stop()

    assert ended is not None
    assert ended.get_output(str) == taskhub
