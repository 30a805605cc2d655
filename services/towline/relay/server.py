"""The relay as a process: connections, tasks, HTTP server, and how they stop."""

from __future__ import annotations

import asyncio
import gc
import signal
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from typing import Final

import uvicorn

from towline.contracts.payloads import open_payload_store
from towline.contracts.producer import EventProducer
from towline.contracts.settings import KafkaSettings, PayloadSettings, RedisSettings
from towline.relay.app import build_app
from towline.relay.audience import Audience
from towline.relay.auth.choose import authenticators_for, signer_for, split_listen
from towline.relay.commands import Publisher
from towline.relay.consumer import LifecycleConsumer
from towline.relay.errors import RedisAwayError
from towline.relay.http import StreamingProtocol
from towline.relay.hub import Hub
from towline.relay.index import RunIndex
from towline.relay.keys import Keys
from towline.relay.metrics import OpenApprovals, observe
from towline.relay.redis_client import connect
from towline.relay.routes import Door
from towline.relay.settings import RelaySettings
from towline.relay.store import RunStore

_PRUNE_EVERY_S: Final = 60.0
_LISTENED_EVERY_S: Final = 2.0
_DRAIN_S: Final = 8
_PUBLISH_TIMEOUT_S: Final = 10.0


class _Server(uvicorn.Server):
    """Leaves signals to `serve`, which ends in order and with status 0."""

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        """Called by uvicorn around its work; its own version ends the process by the signal."""
        yield


async def serve(settings: RelaySettings, kafka: KafkaSettings, redis_settings: RedisSettings) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        RelaySettingsError: A setting is missing or unsafe.
    """
    host, port = split_listen(settings.http_listen)
    authenticators = authenticators_for(settings)
    signer = signer_for(settings, kafka)
    client = connect(redis_settings)
    keys = Keys(redis_settings.key_prefix)
    store = RunStore(client, settings, keys)
    hub = Hub(
        client,
        idle_channel=keys.idle_channel,
        heartbeat_s=settings.heartbeat_s,
        send_timeout_s=settings.send_timeout_s,
    )
    payload_settings = PayloadSettings()
    payloads = open_payload_store(payload_settings)
    audience = Audience(lambda: hub.client_count)
    consumer = LifecycleConsumer(kafka, settings, store, audience, payloads)
    index = RunIndex(client, keys)
    approvals = OpenApprovals()
    producer = EventProducer(
        kafka,
        client_id="towline-relay",
        delivery_timeout_s=_PUBLISH_TIMEOUT_S,
        payloads=payloads,
        event_bytes=payload_settings.event_bytes,
    )
    door = Door(settings, keys, hub, index, store, publisher_of(producer), payloads, signer)
    app = build_app(
        door,
        settings,
        authenticators=authenticators,
        live=consumer.not_alive,
        ready=consumer.not_ready,
        asked=lambda: audience.asked(now=time.monotonic()),
    )
    observe(hub, consumer, approvals)

    class Protocol(StreamingProtocol):
        send_timeout_s = settings.send_timeout_s

    server = _Server(
        uvicorn.Config(
            app,
            http=Protocol,
            host=host,
            port=port,
            log_config=None,
            access_log=False,
            server_header=False,
            lifespan="off",
            timeout_graceful_shutdown=_DRAIN_S,
        )
    )

    def stop() -> None:
        # Stream clients first: they would keep the server from stopping.
        hub.close()
        server.should_exit = True

    _tune_collector()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    background = [
        asyncio.create_task(consumer.run(), name="lifecycle"),
        asyncio.create_task(hub.run(), name="hub"),
        asyncio.create_task(producer.start(), name="producer-start"),
        asyncio.create_task(_prune(store, settings), name="prune"),
        asyncio.create_task(_say_who_listens(store, audience), name="audience"),
        asyncio.create_task(approvals.follow(index), name="open-approvals"),
    ]
    serving = asyncio.create_task(server.serve(), name="http")
    try:
        await _until_one_ends(serving, background)
    finally:
        stop()
        consumer.stop()
        await asyncio.wait({serving}, timeout=_DRAIN_S)
        await asyncio.wait({background[0]}, timeout=4)
        for task in background:
            task.cancel()
        await asyncio.wait(background, timeout=1)
        await producer.stop()
        await client.aclose()
        if payloads is not None:
            await payloads.close()


def _tune_collector() -> None:
    # Modules live as long as the process. A collection of everything looks at all that belongs to clients and
    # stops their streams meanwhile; what a client leaves behind is no cycle, so few are needed.
    gc.freeze()
    gc.set_threshold(20_000, 10, 10)


def publisher_of(producer: EventProducer) -> Publisher:
    """`producer` as the routes want it."""
    return producer


async def _until_one_ends(serving: asyncio.Task[None], background: list[asyncio.Task[None]]) -> None:
    """Until the server ends; a background task that fails ends the process, which is started again."""
    waiting: set[asyncio.Task[None]] = {serving, *background}
    while not serving.done():
        done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()


async def _prune(store: RunStore, settings: RelaySettings) -> None:
    while True:
        with suppress(RedisAwayError):
            await store.prune(before_ms=int((time.time() - settings.ttl_s) * 1000))
        await asyncio.sleep(_PRUNE_EVERY_S)


async def _say_who_listens(store: RunStore, audience: Audience) -> None:
    while True:
        arrival = audience.arrival
        if audience.here(now=time.monotonic()):
            with suppress(RedisAwayError):
                await store.note_listened()
            await asyncio.sleep(_LISTENED_EVERY_S)
        else:
            await arrival.wait()
