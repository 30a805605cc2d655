"""A broker that a test may kill."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from towline.contracts import EventProducer, KafkaSettings, TowlineClient
from towline.contracts.kafka import ensure_topics
from towline.dev import KafkaPart


@asynccontextmanager
async def own_broker(folder: Path) -> AsyncIterator[tuple[KafkaPart, TowlineClient, EventProducer]]:
    """It, with a client and what the platform publishes by."""
    with KafkaPart(data=folder / "kafka") as kafka:
        settings = KafkaSettings(bootstrap=kafka.bootstrap)
        await ensure_topics(settings, partitions=2)
        async with TowlineClient(settings) as client, EventProducer(settings) as platform:
            yield kafka, client, platform
