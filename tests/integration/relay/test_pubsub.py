"""Messages that come together are taken together, whatever version of redis-py is installed."""

from __future__ import annotations

import asyncio

import pytest
import redis
from tests.integration.relay.valkey import Valkey

from towline.contracts.settings import RedisSettings
from towline.relay.pubsub import arrived
from towline.relay.redis_client import connect


async def test_what_has_come_is_handed_out_at_once_in_order_and_subscriptions_are_kept_account_of(
    own_valkey: Valkey,
) -> None:
    client = connect(RedisSettings(url=own_valkey.url))
    pubsub = client.pubsub(ignore_subscribe_messages=True)
    await pubsub.subscribe("a", "b")
    while await client.pubsub_numsub("a", "b") != [("a", 1), ("b", 1)]:  # noqa: ASYNC110 - another process
        await asyncio.sleep(0.01)
    sent = [("ab"[number % 2], f"{number} ü") for number in range(200)]
    pipeline = client.pipeline(transaction=False)
    for channel, text in sent:
        pipeline.publish(channel, text)
    await pipeline.execute()
    await pubsub.unsubscribe("b")
    waves: list[list[tuple[str, str]]] = []
    async with asyncio.timeout(10):
        while sum(map(len, waves)) < len(sent):
            waves.append(await arrived(pubsub))
        while "b" in pubsub.channels:
            await client.publish("a", "more")
            waves.append(await arrived(pubsub))
    heard = [message for wave in waves for message in wave]
    assert heard[: len(sent)] == sent
    assert max(map(len, waves)) > 50, "one by one: redis-py's parser has changed, see towline.relay.pubsub"
    await pubsub.aclose()
    await client.aclose(close_connection_pool=True)


async def test_a_lost_connection_is_told(own_valkey: Valkey) -> None:
    client = connect(RedisSettings(url=own_valkey.url))
    pubsub = client.pubsub(ignore_subscribe_messages=True)
    await pubsub.subscribe("a")
    assert await arrived(pubsub) == []
    waiting = asyncio.create_task(arrived(pubsub))
    await client.client_kill_filter(_type="pubsub")
    with pytest.raises((redis.RedisError, OSError)):
        # redis-py connects anew by itself at most once.
        await asyncio.wait_for(waiting, 10)
    await pubsub.aclose()
    await client.aclose(close_connection_pool=True)
