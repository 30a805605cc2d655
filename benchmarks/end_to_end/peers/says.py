"""What the systems without a Kafka sink of their own publish with: an idempotent producer, acks=all.

Their documentation leaves the choice of a producer to the user; all of them get the same one.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaProducer

KAFKA = os.environ["BENCH_KAFKA"]
PREFIX = os.environ["BENCH_TOPICS"]
"""No other system on this Kafka has it: also for names that are not of these topics."""
ANSWERS, APPROVED, DECISIONS, SAYS = (
    f"{PREFIX}.{name}" for name in ("answer", "approved_answer", "decisions", "says")
)
"""In: requests of either kind, decisions. Out: what the system says."""


def say_ready() -> None:
    """Tell the harness that this process serves."""
    Path(sys.argv[1]).touch()


_starting: asyncio.Task[AIOKafkaProducer] | None = None


async def _start() -> AIOKafkaProducer:
    producer = AIOKafkaProducer(bootstrap_servers=KAFKA, acks="all", enable_idempotence=True)
    await producer.start()
    return producer


async def say(run_id: str, facts: Mapping[str, Any]) -> None:
    """Publish and wait for the acknowledgement. Always to be called on the same event loop."""
    global _starting
    if _starting is None:
        _starting = asyncio.create_task(_start())
    producer = await _starting
    value = json.dumps({"run_id": run_id, **facts}).encode()
    await producer.send_and_wait(SAYS, value, key=run_id.encode())
