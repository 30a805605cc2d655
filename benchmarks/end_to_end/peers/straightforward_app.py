"""Subscribers that start and decide orchestrations; a worker whose activity publishes what came of them."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Generator
from typing import Any

from agent_framework_durabletask import DurableAIAgentOrchestrationContext, DurableAIAgentWorker
from benchmarks.end_to_end.job import AGENT_NAME, make_agent
from benchmarks.end_to_end.peers.says import ANSWERS, APPROVED, DECISIONS, KAFKA, SAYS, say_ready
from durabletask.client import AsyncTaskHubGrpcClient
from durabletask.task import ActivityContext, OrchestrationContext, Task
from durabletask.worker import ConcurrencyOptions, TaskHubGrpcWorker
from faststream import FastStream
from faststream.kafka import KafkaBroker

_BACKEND = f"localhost:{os.environ['BENCH_BACKEND_PORT']}"

broker = KafkaBroker(KAFKA, logger=None)
app = FastStream(broker, logger=None)
quiet = logging.getLogger("quiet")
quiet.setLevel(logging.WARNING)
client = AsyncTaskHubGrpcClient(host_address=_BACKEND, logger=quiet)
loop: asyncio.AbstractEventLoop


@broker.subscriber(ANSWERS, group_id=ANSWERS, auto_offset_reset="earliest")
async def on_answer(body: dict[str, Any]) -> None:
    await client.schedule_new_orchestration("answer", input=body["message"], instance_id=body["run_id"])


@broker.subscriber(APPROVED, group_id=APPROVED, auto_offset_reset="earliest")
async def on_approved_answer(body: dict[str, Any]) -> None:
    await client.schedule_new_orchestration(
        "approved_answer", input=body["message"], instance_id=body["run_id"]
    )


@broker.subscriber(DECISIONS, group_id=DECISIONS, auto_offset_reset="earliest")
async def on_decision(body: dict[str, Any]) -> None:
    await client.raise_orchestration_event(body["run_id"], "HumanApproval", data=body)


def say(context: ActivityContext, message: dict[str, Any]) -> None:
    sending = broker.publish({"run_id": context.orchestration_id, **message}, topic=SAYS)
    asyncio.run_coroutine_threadsafe(sending, loop).result()


def answer(context: OrchestrationContext, message: str) -> Generator[Task[Any], Any, None]:
    agent = DurableAIAgentOrchestrationContext(context).get_agent(AGENT_NAME)
    response = yield agent.run(message, session=agent.create_session())
    yield context.call_activity(say, input={"output": response.text})


def approved_answer(context: OrchestrationContext, message: str) -> Generator[Task[Any], Any, None]:
    yield context.call_activity(say, input={"asks": "HumanApproval"})
    decision = yield context.wait_for_external_event("HumanApproval")
    if not decision["approved"]:
        raise RuntimeError("rejected")
    yield from answer(context, message)


async def main() -> None:
    global loop  # activities run on threads
    loop = asyncio.get_running_loop()
    worker = TaskHubGrpcWorker(
        host_address=_BACKEND,
        logger=quiet,
        concurrency_options=ConcurrencyOptions(maximum_thread_pool_workers=64),
    )
    DurableAIAgentWorker(worker).add_agent(make_agent())
    for orchestrator in (answer, approved_answer):
        worker.add_orchestrator(orchestrator)
    worker.add_activity(say)
    worker.start()
    app.after_startup(say_ready)
    await app.run()


if __name__ == "__main__":
    asyncio.run(main())
