"""Streams over HTTP/2, against gRPC's own server: as `grpc.aio` would read them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest
from tests.integration.http2.test_calls import NOTHING, PATIENCE_S, Service, answering, serving

from towline.http2 import Calls, Keepalive

MESSAGE_BYTES_MAX = 64 << 20
OPTIONS = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
)
SIZES = [0, 1, 11, 16_379, 16_384, 100_000, *range(200), 3_000_000, 5]


class Streaming(Service):
    """Streams of what the tests need."""

    def __init__(self) -> None:
        super().__init__()
        self.said = 0

    async def sizes(self, request: bytes, context: Any) -> AsyncGenerator[bytes]:
        for size in SIZES:
            yield bytes([size % 256]) * size

    async def large(self, request: bytes, context: Any) -> AsyncGenerator[bytes]:
        yield bytes(int(request))
        yield b"after"

    async def breaks_off(self, request: bytes, context: Any) -> AsyncGenerator[bytes]:
        for number in range(3):
            yield b"%d" % number
        await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "nicht möglich: 100 %")

    async def refuses(self, request: bytes, context: Any) -> AsyncGenerator[bytes]:
        await context.abort(grpc.StatusCode.PERMISSION_DENIED, "not you")
        yield b""

    async def nothing(self, request: bytes, context: Any) -> AsyncGenerator[bytes]:
        return
        yield b""

    async def endless(self, request: bytes, context: Any) -> AsyncGenerator[bytes]:
        self.begun.set()
        try:
            while True:
                self.said += 1
                yield bytes(int(request))
        finally:
            self.cancelled.set()

    async def silent(self, request: bytes, context: Any) -> AsyncGenerator[bytes]:
        await context.send_initial_metadata(())
        self.begun.set()
        await self.let_go.wait()
        yield b"late"


Open = Callable[..., Any]


@pytest.fixture(params=["direct", "grpc"])
def way(request: pytest.FixtureRequest) -> Any:
    """Ours, and what it is to be like."""
    return {"direct": direct, "grpc": by_grpc}[request.param]


@asynccontextmanager
async def direct(port: int, keepalive: Keepalive | None = None) -> AsyncGenerator[Open]:
    calls = Calls("127.0.0.1", port, answer_bytes_max=MESSAGE_BYTES_MAX, keepalive=keepalive)
    try:
        yield lambda method, message=b"": calls.stream(
            f"/test/{method}", message, decode=bytes, metadata=NOTHING
        )
    finally:
        calls.close()


@asynccontextmanager
async def by_grpc(port: int) -> AsyncGenerator[Open]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=OPTIONS) as channel:
        yield lambda method, message=b"": channel.unary_stream(f"/test/{method}")(message)


async def read(stream: Any) -> tuple[list[bytes], grpc.StatusCode | None]:
    """What came, and how it ended: None if in order."""
    messages: list[bytes] = []
    try:
        async with asyncio.timeout(PATIENCE_S):
            async for message in stream:  # not by a comprehension: what came before an error counts
                messages.append(message)  # noqa: PERF401
    except grpc.aio.AioRpcError as error:
        return messages, error.code()
    return messages, None


@pytest.mark.parametrize("options", [(), (("grpc.http2.max_frame_size", 20_000),)])
async def test_messages_come_whole_and_in_order_whatever_their_size(way: Any, options: Any) -> None:
    async with serving(Streaming(), options=(*OPTIONS, *options)) as (_, port), way(port) as stream:
        messages, ended = await read(stream("sizes"))
    assert ended is None
    assert messages == [bytes([size % 256]) * size for size in SIZES]


async def test_a_message_may_be_larger_than_the_window(way: Any) -> None:
    async with serving(Streaming(), options=OPTIONS) as (_, port), way(port) as stream:
        messages, ended = await read(stream("large", b"%d" % MESSAGE_BYTES_MAX))
    assert ([len(message) for message in messages], ended) == ([MESSAGE_BYTES_MAX, 5], None)


async def test_a_message_that_is_too_large_ends_the_stream(way: Any) -> None:
    async with serving(Streaming(), options=OPTIONS) as (_, port), way(port) as stream:
        messages, ended = await read(stream("large", b"%d" % (MESSAGE_BYTES_MAX + 1)))
    assert (messages, ended) == ([], grpc.StatusCode.RESOURCE_EXHAUSTED)


@pytest.mark.parametrize(
    ("method", "messages", "ended"),
    [
        ("breaks_off", [b"0", b"1", b"2"], grpc.StatusCode.FAILED_PRECONDITION),
        ("refuses", [], grpc.StatusCode.PERMISSION_DENIED),
        ("nothing_of_the_kind", [], grpc.StatusCode.UNIMPLEMENTED),
        ("nothing", [], None),
    ],
)
async def test_a_stream_ends_as_the_peer_ends_it(way: Any, method: str, messages: Any, ended: Any) -> None:
    async with serving(Streaming()) as (_, port), way(port) as stream:
        assert await read(stream(method)) == (messages, ended)


async def test_a_stream_that_is_refused_was_never_open() -> None:
    async with serving(Streaming()) as (_, port), direct(port) as stream:
        with pytest.raises(grpc.aio.AioRpcError, match="not you"):
            await stream("refuses").initial_metadata()


async def test_a_stream_is_open_before_its_first_message(way: Any) -> None:
    service = Streaming()
    async with serving(service) as (_, port), way(port) as stream, asyncio.timeout(PATIENCE_S):
        waiting = stream("silent")
        await waiting.initial_metadata()
        service.let_go.set()
        assert await read(waiting) == ([b"late"], None)


async def test_a_reader_that_is_slow_slows_the_peer() -> None:
    service = Streaming()
    async with serving(service) as (_, port), direct(port) as stream:
        endless = stream("endless", b"%d" % (1 << 20))
        await endless.initial_metadata()
        before = -1
        while before != service.said:
            before = service.said
            await asyncio.sleep(0.5)
        assert service.said < 40  # a window of 16, and what lies on the way
        for _ in range(100):
            await anext(endless)
        assert service.said >= 100
        endless.cancel()


async def test_a_stream_that_is_cancelled_ends_there_and_disturbs_no_other() -> None:
    service = Streaming()
    async with serving(service) as (_, port), direct(port) as stream, asyncio.timeout(PATIENCE_S):
        endless = stream("endless", b"100")
        assert await anext(endless) == bytes(100)
        endless.cancel()
        assert await read(endless) == ([], grpc.StatusCode.CANCELLED)
        await service.cancelled.wait()
        assert await read(stream("breaks_off")) == ([b"0", b"1", b"2"], grpc.StatusCode.FAILED_PRECONDITION)


async def test_who_waits_for_a_stream_is_told_of_its_cancel() -> None:
    async with serving(Streaming()) as (_, port), direct(port) as stream:
        silent = stream("silent")
        await silent.initial_metadata()
        reading = asyncio.create_task(read(silent))
        await asyncio.sleep(0)
        silent.cancel()
        assert await reading == ([], grpc.StatusCode.CANCELLED)
        assert await read(silent) == ([], grpc.StatusCode.CANCELLED)


async def test_a_peer_that_is_not_there_is_unavailable(way: Any) -> None:
    async with serving(Streaming()) as (server, port):
        await server.stop(None)
    async with way(port) as stream:
        assert await read(stream("sizes")) == ([], grpc.StatusCode.UNAVAILABLE)


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n"])
async def test_a_connection_that_ends_makes_its_stream_unavailable(way: Any, said: bytes) -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(said)
        writer.close()

    async with answering(hang_up) as port, way(port) as stream:
        assert await read(stream("sizes")) == ([], grpc.StatusCode.UNAVAILABLE)


async def test_a_stream_may_end_while_the_peer_shuts_down(way: Any) -> None:
    service = Streaming()
    async with serving(service) as (server, port), way(port) as stream, asyncio.timeout(PATIENCE_S):
        waiting = stream("silent")
        await waiting.initial_metadata()
        stopping = asyncio.create_task(server.stop(PATIENCE_S))
        await asyncio.sleep(0.1)
        service.let_go.set()
        assert await read(waiting) == ([b"late"], None)
        await stopping


async def test_a_peer_that_lives_keeps_its_silent_stream() -> None:
    service = Streaming()
    tolerant = (
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 10),
        ("grpc.http2.max_ping_strikes", 0),
    )
    async with (
        serving(service, options=tolerant) as (_, port),
        direct(port, Keepalive(after_s=0.1, patience_s=5.0)) as stream,
    ):
        waiting = stream("silent")
        await waiting.initial_metadata()
        await asyncio.sleep(1.0)  # ten times what makes it ask
        service.let_go.set()
        assert await read(waiting) == ([b"late"], None)


async def test_a_peer_that_falls_silent_is_given_up() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)

    async with answering(silent) as port, direct(port, Keepalive(after_s=0.1, patience_s=0.1)) as stream:
        assert await read(stream("sizes")) == ([], grpc.StatusCode.UNAVAILABLE)
