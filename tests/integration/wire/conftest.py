"""One stack for all wire tests; each test has a reader of its own."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from pathlib import Path

import pytest
from tests.integration.conftest import unique_prefix
from tests.integration.wire.raw import Wire

from towline.dev.stack import Stack, StackPlan

APP = "tests.integration.wire.upstream_app:setup_worker"
GRACE_S = 3.0


def plan(data: Path, given: dict[str, str]) -> StackPlan:
    prefix = unique_prefix()
    return StackPlan(
        data=data,
        app=APP,
        given=given,
        settings={
            "TOWLINE_KAFKA_TOPIC_PREFIX": prefix,
            "TOWLINE_SCHEDULER_TASKHUB": prefix.strip("."),
            "TOWLINE_BRIDGE_UNKNOWN_RUN_GRACE_S": str(GRACE_S),
            "EXAMPLES_MODEL": "offline",
        },
        roles=("bridge", "worker"),
        partitions=3,
    )


@pytest.fixture(scope="session")
def wire_stack(
    kafka: str, valkey: str, scheduler: str, tmp_path_factory: pytest.TempPathFactory
) -> Generator[Stack]:
    given = {
        "TOWLINE_KAFKA_BOOTSTRAP": kafka,
        "TOWLINE_REDIS_URL": valkey,
        "TOWLINE_SCHEDULER_ADDRESS": scheduler,
    }
    with Stack(plan(tmp_path_factory.mktemp("wire"), given)).running() as stack:
        yield stack


@pytest.fixture
async def wire(wire_stack: Stack) -> AsyncGenerator[Wire]:
    kafka = wire_stack.kafka
    async with Wire(kafka.bootstrap, kafka.topic_prefix) as made:
        yield made
