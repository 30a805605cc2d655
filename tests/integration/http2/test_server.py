"""gRPC's own client against our server: over a socket, with all that it sends by itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, Final

import grpc
import grpc.aio
import pytest
from tests.waiting import eventually_async

from towline.http2 import Calls, Keepalive, ServedCall, Server

LIMIT: Final = 8 << 20
PATIENCE_S: Final = 60.0
BIG: Final = [("grpc.max_receive_message_length", -1)]


class Service:
    """What the tests call."""

    def __init__(self) -> None:
        self.gone = 0
        self.waiting: list[ServedCall] = []

    def handlers(self) -> dict[str, Any]:
        return {f"/service/{name}": getattr(self, name) for name in ("echo", "count", "wait", "refuse")}

    def echo(self, call: ServedCall, data: bytes) -> None:
        call.reply(data)

    def count(self, call: ServedCall, data: bytes) -> None:
        """Streams as many messages of 40 kB as asked for, series by series."""
        left = int(data)
        call.open()

        def go_on(success: bool) -> None:
            nonlocal left
            if not success:
                self.gone += 1
            elif left:
                series = min(left, 3)
                left -= series
                call.send([str(left + at).encode() * 20_000 for at in reversed(range(series))], go_on)
            else:
                call.end()

        go_on(True)

    def wait(self, call: ServedCall, _data: bytes) -> None:
        self.waiting.append(call)

        def gone() -> None:
            self.gone += 1

        call.watch(gone)

    def refuse(self, call: ServedCall, _data: bytes) -> None:
        call.end(grpc.StatusCode.FAILED_PRECONDITION, "nicht möglich: 100 %" + "x" * 20_000)


@asynccontextmanager
async def serving(service: Service) -> AsyncGenerator[tuple[Server, str]]:
    server = Server(
        service.handlers(), message_bytes_max=LIMIT, keepalive=Keepalive(after_s=10.0, patience_s=5.0)
    )
    port = await server.listen("127.0.0.1", 0)
    try:
        yield server, f"127.0.0.1:{port}"
    finally:
        await server.stop(0.0, lambda: None)


async def test_calls_of_any_size_and_compression_come_back_as_they_went() -> None:
    async with serving(Service()) as (_, address), grpc.aio.insecure_channel(address, BIG) as channel:
        echo = channel.unary_unary("/service/echo")
        sizes = (0, 1, 16_379, 16_384, 70_000, LIMIT)
        for compression in (grpc.Compression.NoCompression, grpc.Compression.Gzip, grpc.Compression.Deflate):
            calls = [
                echo(bytes(range(256)) * (size // 256) + b"x" * (size % 256), compression=compression)
                for size in sizes
            ]
            assert [len(await call) for call in calls] == list(sizes)


async def test_many_calls_at_once_with_metadata_that_changes() -> None:
    async with serving(Service()) as (_, address), grpc.aio.insecure_channel(address) as channel:
        echo = channel.unary_unary("/service/echo")
        calls = [
            echo(str(number).encode(), timeout=PATIENCE_S, metadata=(("number", str(number)), ("same", "x")))
            for number in range(500)
        ]
        assert [int(await call) for call in calls] == list(range(500))


async def test_a_stream_comes_whole_and_in_order_to_a_slow_reader() -> None:
    async with serving(Service()) as (_, address), grpc.aio.insecure_channel(address) as channel:
        read: list[int] = []
        async for data in channel.unary_stream("/service/count")(b"100"):
            read.append(int(data[:1] if len(data) == 20_000 else data[:2]))
            await asyncio.sleep(0.002)
        assert read == list(reversed(range(100)))


async def test_a_status_has_its_words() -> None:
    async with serving(Service()) as (_, address), grpc.aio.insecure_channel(address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await channel.unary_unary("/service/refuse")(b"")
        assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert (refused.value.details() or "").startswith("nicht möglich: 100 %xxx")
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await channel.unary_unary("/service/echo")(b"x" * (LIMIT + 1))
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert await channel.unary_unary("/service/echo")(b"still there") == b"still there"


async def test_callers_that_cancel_run_out_of_time_or_disconnect_are_noticed() -> None:
    service = Service()
    async with serving(service) as (_, address):
        async with grpc.aio.insecure_channel(address) as channel:
            wait = channel.unary_unary("/service/wait")
            with pytest.raises(grpc.aio.AioRpcError) as late:
                await wait(b"", timeout=0.1)
            assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            await eventually_async(lambda: service.gone == 1)
            cancelled, stream = wait(b""), channel.unary_stream("/service/count")(b"500")
            await stream.read()
            await eventually_async(lambda: len(service.waiting) == 2)
            cancelled.cancel()
            stream.cancel()
            await eventually_async(lambda: service.gone == 3)
            left = asyncio.ensure_future(wait(b""))
            await eventually_async(lambda: len(service.waiting) == 3)
        await eventually_async(lambda: service.gone == 4)
        with pytest.raises((grpc.aio.AioRpcError, asyncio.CancelledError)):
            await left


@pytest.mark.parametrize("direct", [True, False])
async def test_a_server_that_stops_answers_what_it_has_taken(direct: bool) -> None:
    service = Service()
    async with serving(service) as (server, address):
        host, _, port = address.partition(":")
        calls = Calls(host, int(port))
        async with grpc.aio.insecure_channel(address) as channel:
            if direct:
                waiting = asyncio.create_task(calls.call("/service/wait", b"", timeout_s=30.0, metadata=()))
            else:
                waiting = asyncio.ensure_future(channel.unary_unary("/service/wait")(b""))
            await eventually_async(lambda: service.waiting)
            stopping = asyncio.create_task(
                server.stop(0.2, lambda: service.waiting[0].end(grpc.StatusCode.UNAVAILABLE, "stopping"))
            )
            with pytest.raises(grpc.aio.AioRpcError) as ended:
                await waiting
            await stopping
        calls.close()
    assert (ended.value.code(), ended.value.details()) == (grpc.StatusCode.UNAVAILABLE, "stopping")


async def test_an_address_that_is_taken_is_an_error_and_localhost_is_both_of_them() -> None:
    service = Service()
    async with serving(service) as (_, address):
        second = Server(service.handlers(), message_bytes_max=LIMIT, keepalive=Keepalive())
        with pytest.raises(OSError, match="in use"):
            await second.listen("127.0.0.1", int(address.rpartition(":")[2]))
        port = await second.listen("localhost", 0)
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                assert await channel.unary_unary("/service/echo")(b"x") == b"x"
        finally:
            await second.stop(0.0, lambda: None)
