"""Short calls over HTTP/2, against gRPC's own server and against peers that are none."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final, cast

import grpc
import grpc.aio
import pytest

from towline.http2 import Calls

PATIENCE_S: Final = 60.0
SHORT_S: Final = 0.5
NOTHING: Final[tuple[tuple[str, str], ...]] = ()


class Service(grpc.GenericRpcHandler):
    """Answers with the request; other methods are what the tests need."""

    def __init__(self) -> None:
        self.metadata: list[tuple[str, str]] = []
        self.begun = asyncio.Event()
        self.let_go = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.running = 0
        self.most_running = 0

    def service(self, handler_call_details: Any) -> Any:
        method: str = handler_call_details.method
        behaviour = getattr(self, method.rpartition("/")[2], None)
        streams = inspect.isasyncgenfunction(behaviour)
        make: Any = grpc.unary_stream_rpc_method_handler if streams else grpc.unary_unary_rpc_method_handler
        return None if behaviour is None else make(behaviour)

    async def echo(self, request: bytes, context: Any) -> bytes:
        self.metadata = [(str(key), str(value)) for key, value in context.invocation_metadata()]
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        await asyncio.sleep(0)
        self.running -= 1
        return request

    async def refuse(self, request: bytes, context: Any) -> bytes:
        await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "nicht möglich: 100 %")
        return request

    async def wait(self, request: bytes, context: Any) -> bytes:
        self.begun.set()
        try:
            await self.let_go.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return request


@asynccontextmanager
async def serving(
    service: Service, *, port: int = 0, options: tuple[tuple[str, Any], ...] = ()
) -> AsyncGenerator[tuple[grpc.aio.Server, int]]:
    server = grpc.aio.server(options=(("grpc.so_reuseport", 0), *options))
    server.add_generic_rpc_handlers((service,))
    port = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    try:
        yield server, port
    finally:
        await server.stop(None)


@asynccontextmanager
async def answering(
    answer: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncGenerator[int]:
    """A peer that is no gRPC server; each of its connections is over when the block is left."""
    tasks: list[asyncio.Task[Any]] = []

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.append(cast("asyncio.Task[Any]", asyncio.current_task()))
        await answer(reader, writer)
        await reader.read()
        writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def calling(port: int) -> AsyncGenerator[Callable[..., Any]]:
    calls = Calls("127.0.0.1", port)

    async def call(
        method: str, message: bytes = b"", timeout_s: float = PATIENCE_S, metadata: Any = NOTHING
    ) -> bytes:
        return await calls.call(f"/test/{method}", message, timeout_s=timeout_s, metadata=metadata)

    try:
        yield call
    finally:
        calls.close()


async def code_of(call: Any) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await call
    return failed.value.code()


@pytest.mark.parametrize("options", [(), (("grpc.http2.max_frame_size", 20_000),)])
async def test_each_of_many_calls_gets_its_own_answer_whatever_their_size(options: Any) -> None:
    messages = [bytes([number]) * (number**3 % 300_000) for number in range(120)]
    async with (
        serving(Service(), options=options) as (_, port),
        calling(port) as call,
        asyncio.timeout(PATIENCE_S),
    ):
        assert await asyncio.gather(*(call("echo", message) for message in messages)) == messages


async def test_a_peer_that_takes_few_calls_at_once_gets_no_more() -> None:
    service = Service()
    async with (
        serving(service, options=(("grpc.max_concurrent_streams", 3),)) as (_, port),
        calling(port) as call,
    ):
        await call("echo")  # the limit is known with the first answer
        answers = await asyncio.gather(*(call("echo", b"%d" % number) for number in range(50)))
    assert answers == [b"%d" % number for number in range(50)]
    assert service.most_running <= 3


async def test_errors_are_told_as_grpc_tells_them() -> None:
    async with serving(Service()) as (_, port), calling(port) as call:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call("refuse")
        assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert refused.value.details() == "nicht möglich: 100 %"
        assert await code_of(call("nothing_of_the_kind")) is grpc.StatusCode.UNIMPLEMENTED
        assert await call("echo", b"still there") == b"still there"


async def test_metadata_comes_along_however_long() -> None:
    service = Service()
    metadata = (("taskhub", "mine"), ("authorization", "Bearer " + "x" * 5_000))
    async with (
        serving(service, options=(("grpc.max_metadata_size", 16_000),)) as (_, port),
        calling(port) as call,
    ):
        await call("echo", metadata=metadata)
        assert set(metadata) <= set(service.metadata)


async def test_a_cancelled_call_is_cancelled_there_and_disturbs_no_other() -> None:
    service = Service()
    async with serving(service) as (_, port), calling(port) as call, asyncio.timeout(PATIENCE_S):
        waiting = asyncio.create_task(call("wait"))
        await service.begun.wait()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await service.cancelled.wait()
        assert await call("echo", b"next") == b"next"


async def test_a_call_out_of_time_fails_and_the_connection_is_kept() -> None:
    service = Service()
    async with serving(service) as (_, port), calling(port) as call:
        assert await code_of(call("wait", timeout_s=SHORT_S)) is grpc.StatusCode.DEADLINE_EXCEEDED
        assert await call("echo", b"next") == b"next"


async def test_a_server_that_is_gone_is_unavailable_and_found_again_when_it_is_back() -> None:
    async with serving(Service()) as (server, port), calling(port) as call, asyncio.timeout(PATIENCE_S):
        assert await call("echo", b"1") == b"1"
        await server.stop(None)
        assert await code_of(call("echo")) is grpc.StatusCode.UNAVAILABLE
        async with serving(Service(), port=port):
            assert await call("echo", b"2") == b"2"


async def test_calls_under_way_are_answered_while_the_server_shuts_down() -> None:
    service = Service()
    async with serving(service) as (server, port), calling(port) as call, asyncio.timeout(PATIENCE_S):
        waiting = asyncio.create_task(call("wait", b"late"))
        await service.begun.wait()
        stopping = asyncio.create_task(server.stop(PATIENCE_S))
        # The server has said that it goes away when it takes no more calls.
        while await code_of_or_none(call("echo")) is None:
            pass
        service.let_go.set()
        assert await waiting == b"late"
        await stopping


async def code_of_or_none(call: Any) -> grpc.StatusCode | None:
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error.code()
    return None


@pytest.mark.parametrize(
    "said",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"\xff" * 100,
        b"\x00\x00\x01\x04\x00\x00\x00\x00\x00\x00",  # SETTINGS of one byte
        b"\x00\x00\x01\x01\x04\x00\x00\x00\x01\xff",  # headers that can't be read
        b"\x00\x00\x00\x09\x04\x00\x00\x00\x01",  # a continuation of nothing
        b"",
    ],
)
async def test_a_peer_that_is_no_grpc_server_is_unavailable(said: bytes) -> None:
    async def nonsense(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(said)
        if not said:
            writer.close()

    async with answering(nonsense) as port, calling(port) as call:
        assert await code_of(call("echo")) is grpc.StatusCode.UNAVAILABLE


async def test_a_peer_that_falls_silent_is_given_up() -> None:
    connections = 0

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1

    async with answering(silent) as port, calling(port) as call:
        while connections < 3:
            assert await code_of(call("echo", timeout_s=SHORT_S)) is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_a_closed_client_makes_no_calls() -> None:
    async with serving(Service()) as (_, port):
        calls = Calls("127.0.0.1", port)
        assert await calls.call("/test/echo", b"1", timeout_s=PATIENCE_S, metadata=NOTHING) == b"1"
        calls.close()
        late = calls.call("/test/echo", b"1", timeout_s=PATIENCE_S, metadata=NOTHING)
        assert await code_of(late) is grpc.StatusCode.CANCELLED


async def test_closing_ends_calls_that_are_open_on_a_connection_whose_peer_is_leaving_it() -> None:
    """They were left open, and the connection with them, until they ran out of time; streams never do."""
    service = Service()
    options = (("grpc.max_connection_age_ms", 50), ("grpc.max_connection_age_grace_ms", 60_000))
    async with serving(service, options=options) as (_, port), asyncio.timeout(PATIENCE_S):
        calls = Calls("127.0.0.1", port)
        waiting = asyncio.create_task(
            calls.call("/test/wait", b"", timeout_s=PATIENCE_S, metadata=NOTHING), name="waits"
        )
        await service.begun.wait()
        link = calls._link
        while calls._link is link:  # the peer says that it takes no further ones
            await calls.call("/test/echo", b"", timeout_s=PATIENCE_S, metadata=NOTHING)
        assert not waiting.done()

        calls.close()

        async with asyncio.timeout(5):
            assert await code_of(waiting) is grpc.StatusCode.UNAVAILABLE
