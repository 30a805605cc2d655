"""A Temporal worker, and a Kafka consumer that starts and signals its workflows.

Temporal has no Kafka consumer: this one commits an offset after the server has taken the record over.
"""

from __future__ import annotations

import asyncio
import json
import os
from contextlib import suppress
from datetime import timedelta
from typing import Any

from temporalio import activity, workflow
from temporalio.client import Client
from temporalio.common import WorkflowIDReusePolicy
from temporalio.exceptions import WorkflowAlreadyStartedError
from temporalio.worker import Worker

with workflow.unsafe.imports_passed_through():
    from aiokafka import AIOKafkaConsumer, TopicPartition
    from benchmarks.end_to_end.job import make_agent
    from benchmarks.end_to_end.peers.says import ANSWERS, APPROVED, DECISIONS, KAFKA, PREFIX, say, say_ready

QUEUE = "bench"
PATIENCE = timedelta(minutes=5)
agent = make_agent()


@activity.defn
async def ask(message: str) -> str:
    return (await agent.run(message)).text


@activity.defn
async def publish(run_id: str, facts: dict[str, Any]) -> None:
    await say(run_id, facts)


@workflow.defn
class Answer:
    @workflow.run
    async def run(self, message: str) -> None:
        text = await workflow.execute_activity(ask, message, start_to_close_timeout=PATIENCE)
        await workflow.execute_activity(
            publish, args=[workflow.info().workflow_id, {"output": text}], start_to_close_timeout=PATIENCE
        )


@workflow.defn
class ApprovedAnswer:
    def __init__(self) -> None:
        self._decision: dict[str, Any] | None = None

    @workflow.signal
    def decide(self, decision: dict[str, Any]) -> None:
        self._decision = decision

    @workflow.run
    async def run(self, message: str) -> None:
        run_id = workflow.info().workflow_id
        asks: dict[str, Any] = {"asks": "decide"}
        await workflow.execute_activity(publish, args=[run_id, asks], start_to_close_timeout=PATIENCE)
        await workflow.wait_condition(lambda: self._decision is not None)
        assert self._decision is not None
        if not self._decision["approved"]:
            raise RuntimeError("rejected")
        text = await workflow.execute_activity(ask, message, start_to_close_timeout=PATIENCE)
        await workflow.execute_activity(
            publish, args=[run_id, {"output": text}], start_to_close_timeout=PATIENCE
        )


async def handle(client: Client, topic: str, value: bytes) -> None:
    body = json.loads(value)
    if topic == DECISIONS:
        await client.get_workflow_handle(body["run_id"]).signal(ApprovedAnswer.decide, body)
        return
    with suppress(WorkflowAlreadyStartedError):  # delivered once more
        await client.start_workflow(
            Answer.run if topic == ANSWERS else ApprovedAnswer.run,
            body["message"],
            id=body["run_id"],
            task_queue=QUEUE,
            id_reuse_policy=WorkflowIDReusePolicy.REJECT_DUPLICATE,
        )


async def consume(client: Client) -> None:
    consumer = AIOKafkaConsumer(
        ANSWERS,
        APPROVED,
        DECISIONS,
        bootstrap_servers=KAFKA,
        group_id=PREFIX,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
    )
    await consumer.start()
    while True:
        batches = await consumer.getmany(timeout_ms=500, max_records=100)
        handled = [
            handle(client, record.topic, record.value or b"")
            for records in batches.values()
            for record in records
        ]
        await asyncio.gather(*handled)
        ends: dict[TopicPartition, int] = {
            partition: records[-1].offset + 1 for partition, records in batches.items() if records
        }
        if ends:
            await consumer.commit(ends)


async def main() -> None:
    client = await Client.connect(os.environ["BENCH_TEMPORAL"])
    worker = Worker(
        client,
        task_queue=QUEUE,
        workflows=[Answer, ApprovedAnswer],
        activities=[ask, publish],
        **json.loads(os.environ.get("BENCH_TEMPORAL_WORKER", "{}")),
    )
    async with worker:
        say_ready()
        await consume(client)


if __name__ == "__main__":
    asyncio.run(main())
