"""What the relay's HTTP protocol does beyond uvicorn's, over real sockets."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from typing import Any

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send
from tests.waiting import eventually_async

from towline.dev.ports import lease
from towline.relay.http import StreamingProtocol
from towline.relay.streaming import DIRECT

REQUEST = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


class App:
    """Streams until the client has left; what is to be written directly is asked of it."""

    def __init__(self) -> None:
        self.connections: list[Any] = []
        self.lost = 0

    async def __call__(self, scope: Scope, _receive: Receive, send: Send) -> None:
        direct = scope["extensions"][DIRECT]
        left = asyncio.Event()
        direct.when_lost(left.set)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"first", "more_body": True})
        self.connections.append(direct)
        await left.wait()
        self.lost += 1
        assert not direct.write_chunk(b"1\r\nx\r\n")
        # A listener that comes too late is called at once.
        late = asyncio.Event()
        direct.when_lost(late.set)
        assert late.is_set()


@pytest.fixture
async def served() -> AsyncIterator[tuple[App, int]]:
    app, port = App(), lease()
    config = uvicorn.Config(
        app, http=StreamingProtocol, host="127.0.0.1", port=port, log_config=None, lifespan="off"
    )
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    await eventually_async(lambda: server.started)
    yield app, port
    server.should_exit = True
    await serving


async def test_a_connection_that_is_lost_is_told_and_leaves_nothing_for_the_garbage_collector(
    served: tuple[App, int],
) -> None:
    app, port = served

    def left() -> int:
        return sum(isinstance(each, StreamingProtocol) for each in gc.get_objects())

    gc.collect()
    gc.disable()
    try:
        for number in range(1, 11):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(REQUEST)
            await reader.readuntil(b"5\r\nfirst\r\n")
            assert app.connections.pop().write_chunk(b"4\r\nmore\r\n")
            await reader.readuntil(b"4\r\nmore\r\n")
            writer.close()
            await writer.wait_closed()
            await eventually_async(lambda number=number: app.lost == number)
        await eventually_async(lambda: left() == 0)
    finally:
        gc.enable()
