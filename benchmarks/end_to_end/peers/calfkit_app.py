"""A calfkit agent, a gateway that asks it for what comes from Kafka, and a consumer node for its answers.

calfkit's agents are its own, so this one is not a Microsoft Agent Framework agent: the same scripted answer
comes from a function model in its own agent loop.
"""

from __future__ import annotations

import asyncio
import json
import os

from aiokafka import AIOKafkaConsumer
from benchmarks.end_to_end.job import expected, latency_s
from benchmarks.end_to_end.peers.says import ANSWERS, KAFKA, PREFIX, say, say_ready
from calfkit import Agent, Client, ProvisioningConfig, Worker, consumer
from calfkit._vendor.pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, UserPromptPart
from calfkit._vendor.pydantic_ai.models.function import AgentInfo, FunctionModel
from calfkit.models.consumer_context import ConsumerContext

AGENT, OUTPUT = f"{PREFIX}.answerer", f"{PREFIX}.output"


async def answer(messages: list[ModelMessage], _: AgentInfo) -> ModelResponse:
    text = next(str(part.content) for part in messages[-1].parts if isinstance(part, UserPromptPart))
    await asyncio.sleep(latency_s(text))
    return ModelResponse(parts=[TextPart(expected(text))])


@consumer(name=f"{PREFIX}.publish", subscribe_topics=OUTPUT, agent_output_type=str)
async def publish(context: ConsumerContext[str]) -> None:
    if context.output is not None:
        await say(context.correlation_id, {"output": context.output})


async def consume(client: Client) -> None:
    answerer = client.agent(AGENT)
    requests = AIOKafkaConsumer(
        ANSWERS,
        bootstrap_servers=KAFKA,
        group_id=ANSWERS,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
    )
    await requests.start()
    while True:
        batches = await requests.getmany(timeout_ms=500, max_records=100)
        bodies = [json.loads(record.value or b"") for records in batches.values() for record in records]
        await asyncio.gather(
            *(answerer.send(body["message"], correlation_id=body["run_id"]) for body in bodies)
        )
        if bodies:
            await requests.commit()


async def main() -> None:
    partitions = int(os.environ["BENCH_PARTITIONS"])
    client = Client.connect(
        KAFKA,
        provisioning=ProvisioningConfig(enabled=True, num_partitions=partitions),
        enable_idempotence=os.environ["BENCH_ACKS"] == "all" or None,
    )
    agent = Agent(
        AGENT,
        system_prompt="Answer.",
        model_client=FunctionModel(answer),  # type: ignore[arg-type] - calfkit's alias of the same base
        publish_topic=OUTPUT,
    )
    worker = Worker(
        client,
        nodes=[agent, publish],
        max_workers=int(os.environ["BENCH_WORKERS"]),
        # By default a new group begins at the end: what comes before its first assignment would be lost.
        extra_subscribe_kwargs={"auto_offset_reset": "earliest"},
    )
    async with worker:
        say_ready()
        await consume(client)


if __name__ == "__main__":
    asyncio.run(main())
