"""Who has no token gets nothing of the server, its memory included."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from tests.integration.scheduler.test_process import Process

from towline.http2.frames import (
    END_HEADERS,
    END_STREAM,
    MAX_FRAME_BYTES,
    PREFACE,
    FrameReader,
    Kind,
    frame,
    settings,
)
from towline.http2.headers import HeaderReader, header_block

PATIENCE_S = 10.0
MESSAGE_BYTES = 60_000_000


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Process]:
    process = Process(tmp_path, "--token", "right")
    process.start()
    yield process
    process.end(signal.SIGTERM)


async def status_of_what_has_only_begun(server: Process, *headers: tuple[str, str]) -> str | None:
    """How a call ends of whose large message only a frame is sent; None if the server waits for the rest."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.address.rpartition(":")[2])
    block = header_block(
        (
            (":method", "POST"),
            (":scheme", "http"),
            (":path", "/TaskHubSidecarService/StartInstance"),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
            *headers,
        )
    )
    prefix = b"\0" + MESSAGE_BYTES.to_bytes(4, "big")
    part = prefix + bytes(MAX_FRAME_BYTES - len(prefix))
    writer.write(
        PREFACE
        + settings(())
        + frame(Kind.HEADERS, END_HEADERS, 1, block)
        + frame(Kind.DATA, 0, 1, part)
        + frame(Kind.PING, 0, 0, b"all sent")
    )
    frames, blocks = FrameReader(), HeaderReader()
    try:
        async with asyncio.timeout(PATIENCE_S):
            while True:
                for one in frames.feed(await reader.read(65_536)):
                    if one.kind == Kind.HEADERS and one.flags & END_STREAM:
                        return dict(blocks.read(one.payload))["grpc-status"]
                    if one.kind == Kind.HEADERS:
                        blocks.read(one.payload)
                    if one.kind == Kind.PING and one.flags:
                        return None
    finally:
        writer.close()


async def test_the_message_of_a_caller_without_the_token_is_not_read(server: Process) -> None:
    """It was gathered first, 64 MiB of each of as many calls as the caller likes to begin."""
    unauthenticated = str(grpc.StatusCode.UNAUTHENTICATED.value[0])

    assert await status_of_what_has_only_begun(server) == unauthenticated
    assert await status_of_what_has_only_begun(server, ("authorization", "Bearer wrong")) == unauthenticated
    assert await status_of_what_has_only_begun(server, ("authorization", "Bearer right")) is None


def test_health_is_told_to_everybody(server: Process) -> None:
    with grpc.insecure_channel(server.address) as channel:
        check = channel.unary_unary("/grpc.health.v1.Health/Check")
        assert check(b"", timeout=PATIENCE_S) == b"\x08\x01"
        with pytest.raises(grpc.RpcError) as refused:
            channel.unary_unary("/towline.scheduler.Admin/GetStats")(b"", timeout=PATIENCE_S)
    assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED  # type: ignore[attr-defined]
