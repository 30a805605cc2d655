"""How the commands reach Kafka, and the payload store that events may refer to."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

from aiokafka import AIOKafkaConsumer

from towline.contracts.consumers import consumer
from towline.contracts.payloads import PayloadStore, open_payload_store
from towline.contracts.settings import KafkaSettings

CONNECT_TIMEOUT_S: Final = 10.0
"""A person waits: a broker that does not answer by then is away."""


@asynccontextmanager
async def reader(settings: KafkaSettings) -> AsyncGenerator[tuple[AIOKafkaConsumer, PayloadStore | None]]:
    """A consumer without a group, nothing assigned yet, and the payload store if one is configured.

    Raises:
        KafkaUnavailableError: No broker answers.
    """
    async with AsyncExitStack() as opened:
        payloads = open_payload_store()
        if payloads is not None:
            await opened.enter_async_context(payloads)
        yield (
            await opened.enter_async_context(
                consumer(settings, client_id="towline-cli", timeout_s=CONNECT_TIMEOUT_S)
            ),
            payloads,
        )
