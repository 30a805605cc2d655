"""DBOS workflows behind DBOS's own Kafka consumer; approvals by messages to the workflow."""

from __future__ import annotations

import asyncio
import json
import os
from typing import Any

from benchmarks.end_to_end.job import make_agent
from benchmarks.end_to_end.peers.says import ANSWERS, APPROVED, DECISIONS, KAFKA, say, say_ready
from dbos import DBOS, DBOSConfig, KafkaMessage

DAYS_S = 7 * 24 * 3600
agent = make_agent()
config: DBOSConfig = {
    "name": "bench",
    "system_database_url": os.environ["BENCH_DATABASE"],
    "log_level": "WARNING",
    **json.loads(os.environ.get("BENCH_DBOS", "{}")),
}
DBOS(config=config)


@DBOS.step()
async def ask(message: str) -> str:
    return (await agent.run(message)).text


@DBOS.step()
async def publish(run_id: str, facts: dict[str, Any]) -> None:
    await say(run_id, facts)


def consumer(topic: str) -> Any:
    return DBOS.kafka_consumer(config={"bootstrap.servers": KAFKA, "group.id": topic}, topics=[topic])


@consumer(ANSWERS)
@DBOS.workflow()
async def answer(message: KafkaMessage) -> None:
    request = json.loads(message.value or b"")
    await publish(request["run_id"], {"output": await ask(request["message"])})


@consumer(APPROVED)
@DBOS.workflow()
async def approved_answer(message: KafkaMessage) -> None:
    request = json.loads(message.value or b"")
    await publish(request["run_id"], {"asks": DBOS.workflow_id})
    decision = await DBOS.recv_async("approval", timeout_seconds=DAYS_S)
    if not decision["approved"]:
        raise RuntimeError("rejected")
    await publish(request["run_id"], {"output": await ask(request["message"])})


@consumer(DECISIONS)
@DBOS.workflow()
async def decide(message: KafkaMessage) -> None:
    decision = json.loads(message.value or b"")
    await DBOS.send_async(decision["approval"], decision, "approval")


async def main() -> None:
    DBOS.launch()
    say_ready()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
