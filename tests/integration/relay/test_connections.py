"""What the relay's HTTP protocol does beyond uvicorn's, over real sockets."""

from __future__ import annotations

import asyncio
import gc
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
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
    app = App()
    async with _serving(app, StreamingProtocol) as (port, _):
        yield app, port


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


class Patience(StreamingProtocol):
    """With less of it, so that tests need not wait."""

    send_timeout_s = 0.3
    request_timeout_s = 0.3


async def _large(_scope: Scope, receive: Receive, send: Send) -> None:
    while (await receive()).get("more_body"):
        pass
    await send(
        {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % _LARGE)]}
    )
    await send({"type": "http.response.body", "body": b"x" * _LARGE})


_LARGE = 20_000_000
_BRIEF = {"timeout_keep_alive": 1, "timeout_graceful_shutdown": 1}
"""What uvicorn itself waits for, in seconds."""


@asynccontextmanager
async def _serving(
    app: Any, protocol: type[StreamingProtocol], **options: Any
) -> AsyncIterator[tuple[int, uvicorn.Server]]:
    port = lease()
    config = uvicorn.Config(
        app, http=protocol, host="127.0.0.1", port=port, log_config=None, lifespan="off", **options
    )
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    await eventually_async(lambda: server.started)
    yield port, server
    server.should_exit = True
    await serving


@pytest.mark.parametrize("requests", [REQUEST, REQUEST * 10_000])
async def test_who_takes_nothing_of_an_answer_is_cut_off_and_who_is_slow_is_not(requests: bytes) -> None:
    async with _serving(_large, Patience, **_BRIEF) as (port, server):
        open_now = server.server_state.connections
        with socket.create_connection(("127.0.0.1", port)) as idle:
            idle.sendall(requests)
            await eventually_async(lambda: open_now)
            await eventually_async(lambda: not open_now)
        slow, writer = await asyncio.open_connection("127.0.0.1", port, limit=65_536)
        writer.write(REQUEST)
        await slow.readuntil(b"\r\n\r\n")
        taken = 0
        while taken < _LARGE:
            taken += len(await slow.read(200_000))
            await asyncio.sleep(0.01)  # as a thin line would
        writer.close()


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n" + b"X-More: and more\r\n" * 4_000,
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX-More: " + b"x" * 66_000,
        b"GET /" + b"x" * 66_000,
    ],
)
async def test_a_request_head_without_end_is_refused(head: bytes) -> None:
    async with _serving(_large, StreamingProtocol, **_BRIEF) as (port, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head)
        answer = await asyncio.wait_for(reader.read(), 10)
        assert answer.startswith(b"HTTP/1.1 431 ")
        assert b"65536 bytes" in answer
        writer.close()


@pytest.mark.parametrize(
    "begun",
    [
        b"",
        b"GET / HTTP/1.1\r\nHost:",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n{",
    ],
)
@pytest.mark.parametrize("before", [b"", REQUEST])
async def test_a_request_that_is_never_whole_holds_no_connection(before: bytes, begun: bytes) -> None:
    async with _serving(_large, Patience, **_BRIEF) as (port, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(before)
        if before:
            await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(_LARGE)
        writer.write(begun)
        assert await asyncio.wait_for(reader.read(), 10) == b""
        writer.close()
