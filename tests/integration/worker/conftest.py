"""A bridge and a worker of the tests' own app, and readers of what they publish."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from pathlib import Path

import pytest
from tests.integration.conftest import unique_prefix
from tests.integration.wire.raw import Wire

from towline.dev.stack import Stack, StackPlan


@pytest.fixture(scope="module")
def worker_stack(
    kafka: str, valkey: str, scheduler: str, tmp_path_factory: pytest.TempPathFactory
) -> Generator[Stack]:
    prefix = unique_prefix()
    plan = StackPlan(
        data=tmp_path_factory.mktemp("worker"),
        app="tests.integration.worker.apps:setup_worker",
        given={
            "TOWLINE_KAFKA_BOOTSTRAP": kafka,
            "TOWLINE_REDIS_URL": valkey,
            "TOWLINE_SCHEDULER_ADDRESS": scheduler,
        },
        settings={
            "TOWLINE_KAFKA_TOPIC_PREFIX": prefix,
            "TOWLINE_SCHEDULER_TASKHUB": prefix.strip("."),
        },
        roles=("bridge", "worker"),
        partitions=3,
    )
    with Stack(plan).running() as stack:
        yield stack


@pytest.fixture
async def wire(worker_stack: Stack) -> AsyncGenerator[Wire]:
    kafka = worker_stack.kafka
    async with Wire(kafka.bootstrap, kafka.topic_prefix) as made:
        yield made


@pytest.fixture
def markers(tmp_path: Path) -> Path:
    folder = tmp_path / "markers"
    folder.mkdir()
    return folder
