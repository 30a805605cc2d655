"""HTTP/2 without a network: frames, headers, and what a connection does with what it is told."""

from __future__ import annotations

import asyncio
import struct
from typing import Any

import grpc
import grpc.aio
import hpack
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.http2.far_end import FarEnd
from tests.waiting import eventually_async

from towline.http2 import frames
from towline.http2.connection import Keepalive
from towline.http2.exchange import Call, NotTakenError
from towline.http2.frames import Frame, FrameReader, Http2Error, Kind, Setting, frame, settings
from towline.http2.headers import header_block
from towline.http2.link import Link
from towline.http2.streams import Incoming

_frames = st.lists(
    st.tuples(st.sampled_from(Kind), st.integers(0, 255), st.integers(0, 2**31 - 1), st.binary(max_size=300))
)
_OK = header_block(((":status", "200"), ("content-type", "application/grpc"), ("grpc-status", "0")))
_OPEN = header_block(((":status", "200"), ("content-type", "application/grpc")))
_ENDED = header_block((("grpc-status", "0"),))


@given(_frames, st.integers(1, 40))
def test_frames_are_read_however_they_are_cut(sent: list[tuple[Kind, int, int, bytes]], piece: int) -> None:
    data = b"".join(frame(*one) for one in sent)
    reader = FrameReader()
    read = [one for at in range(0, len(data), piece) for one in reader.feed(data[at : at + piece])]
    assert read == [Frame(*one) for one in sent]


def test_padding_and_priority_are_taken_off() -> None:
    assert frames.content(Frame(Kind.DATA, 0x8, 1, b"\x02abc\0\0")) == b"abc"
    assert frames.content(Frame(Kind.HEADERS, 0x28, 1, b"\x01\0\0\0\0\x10abc\0")) == b"abc"
    with pytest.raises(Http2Error):
        frames.content(Frame(Kind.DATA, 0x8, 1, b"\x09abc"))


class Peer(FarEnd):
    """The other end of a link."""

    def __init__(self, keepalive: Keepalive | None = None) -> None:
        self.link = Link(keepalive)
        super().__init__(self.link, passes=1)
        self._greeted = False

    async def sent(self, *kinds: Kind) -> list[Frame]:
        """What the link has sent since, of these kinds."""
        if not self._greeted:
            await asyncio.sleep(0)
            assert self.data.startswith(frames.PREFACE)
            self.data = self.data.removeprefix(frames.PREFACE)
            self._greeted = True
        return await super().sent(*kinds)

    def stream(self) -> Incoming:
        incoming = Incoming(b"\x00\x01a\x01b", b"", 1 << 20)
        self.link.start(incoming)
        return incoming

    def call(self, message: bytes) -> Call:
        call = Call(b"\x00\x01a\x01b", message, asyncio.get_running_loop().create_future())
        self.link.start(call)
        return call


def _code(call: Call) -> grpc.StatusCode:
    error: Any = call.answer.exception()
    assert isinstance(error, grpc.aio.AioRpcError)
    return error.code()


async def test_no_more_is_sent_than_the_peer_takes() -> None:
    peer = Peer()
    peer.say(settings(((Setting.INITIAL_WINDOW_SIZE, 10),)))
    call = peer.call(b"x" * 25)
    assert [len(one.payload) for one in await peer.sent(Kind.DATA)] == [10]
    peer.say(frame(Kind.WINDOW_UPDATE, 0, call.stream, struct.pack(">I", 5)))
    assert [len(one.payload) for one in await peer.sent(Kind.DATA)] == [5]
    peer.say(settings(((Setting.INITIAL_WINDOW_SIZE, 100),)))
    (last,) = await peer.sent(Kind.DATA)
    assert (len(last.payload), last.flags) == (15, frames.END_STREAM)


async def test_the_whole_connection_has_a_window_too() -> None:
    peer = Peer()
    peer.say(settings(((Setting.INITIAL_WINDOW_SIZE, 1 << 20),)))
    calls = [peer.call(b"x" * 50_000) for _ in range(2)]
    assert sum(len(one.payload) for one in await peer.sent(Kind.DATA)) == 65_535
    peer.say(frame(Kind.WINDOW_UPDATE, 0, 0, struct.pack(">I", 1 << 20)))
    rest = await peer.sent(Kind.DATA)
    assert sum(len(one.payload) for one in rest) == 2 * 50_005 - 65_535
    assert [one.stream for one in rest if one.flags & frames.END_STREAM] == [calls[1].stream]


async def test_a_call_that_was_refused_is_made_again() -> None:
    peer = Peer()
    call = peer.call(b"hello")
    await peer.sent()
    peer.say(frame(Kind.RST_STREAM, 0, 1, struct.pack(">I", 7)))
    while not (again := await peer.sent(Kind.DATA)):
        pass
    assert (again[0].stream, again[0].payload[5:]) == (3, b"hello")
    assert not call.answer.done()


async def test_calls_that_a_leaving_peer_has_not_looked_at_are_given_back() -> None:
    peer = Peer()
    taken, not_taken = peer.call(b"1"), peer.call(b"2")
    peer.say(frame(Kind.GOAWAY, 0, 0, struct.pack(">II", taken.stream, 0)))
    assert not peer.link.takes_calls
    assert isinstance(not_taken.answer.exception(), NotTakenError)
    end = frames.END_HEADERS | frames.END_STREAM
    peer.say(frame(Kind.DATA, 0, taken.stream, b"\0\0\0\0\2ok"), frame(Kind.HEADERS, end, taken.stream, _OK))
    assert taken.answer.result() == b"ok"
    assert peer.closed


async def test_a_peer_that_asks_for_a_smaller_table_is_told_that_there_is_none() -> None:
    peer = Peer()
    decoder: Any = hpack.Decoder()
    peer.call(b"")
    (before,) = await peer.sent(Kind.HEADERS)
    assert decoder.decode(before.payload) == [("a", "b")]
    peer.say(settings(((Setting.HEADER_TABLE_SIZE, 0),)))
    decoder.max_allowed_table_size = 0
    for _ in range(2):
        peer.call(b"")
        (after,) = await peer.sent(Kind.HEADERS)
        # Raises where the encoder has not made its table smaller (RFC 7541, 4.2).
        assert decoder.decode(after.payload) == [("a", "b")]
    assert after.payload == before.payload


async def test_headers_may_come_in_pieces() -> None:
    peer = Peer()
    call = peer.call(b"")
    peer.say(
        frame(Kind.DATA, 0, 1, b"\0\0\0\0\0"),
        frame(Kind.HEADERS, frames.END_STREAM, 1, _OK[:9]),
        frame(Kind.CONTINUATION, frames.END_HEADERS, 1, _OK[9:]),
    )
    assert call.answer.result() == b""


@pytest.mark.parametrize(
    ("said", "code"),
    [
        (b"\1\0\0\0\0", grpc.StatusCode.INTERNAL),  # compressed
        (b"\0\0\0\0\7abc", grpc.StatusCode.INTERNAL),  # cut off
        (b"", grpc.StatusCode.INTERNAL),
        (b"\0" * ((4 << 20) + 10), grpc.StatusCode.RESOURCE_EXHAUSTED),
    ],
)
async def test_an_answer_that_is_no_message_is_an_error(said: bytes, code: grpc.StatusCode) -> None:
    peer = Peer()
    call = peer.call(b"")
    for at in range(0, len(said), 16_384):
        peer.say(frame(Kind.DATA, 0, 1, said[at : at + 16_384]))
    peer.say(frame(Kind.HEADERS, frames.END_HEADERS | frames.END_STREAM, 1, _OK))
    assert _code(call) is code


async def test_a_large_answer_is_told_to_go_on_and_small_ones_are_not() -> None:
    peer = Peer()
    small = peer.call(b"")
    large = Call(b"\x00\x01a\x01b", b"", asyncio.get_running_loop().create_future(), 64 << 20)
    peer.link.start(large)
    await peer.sent()
    peer.say(frame(Kind.DATA, 0, small.stream, b"\0\0\0\0\2ok"))
    window, said = 1 << 24, 0
    data = b"\0\3\0\0\0" + b"x" * (48 << 20)
    for at in range(0, len(data), 16_384):
        part = data[at : at + 16_384]
        assert said + len(part) <= window, "the peer may not go on"
        peer.say(frame(Kind.DATA, 0, large.stream, part))
        said += len(part)
        for told in await peer.sent(Kind.WINDOW_UPDATE):
            assert told.stream == large.stream
            window += frames.number(told.payload)
    peer.say(frame(Kind.HEADERS, frames.END_HEADERS | frames.END_STREAM, large.stream, _OK))
    assert len(large.answer.result()) == 48 << 20


@given(
    st.lists(st.binary(max_size=60), max_size=30),
    st.lists(st.integers(1, 50), min_size=1),
    st.integers(1, 200),
)
def test_messages_of_a_stream_are_read_however_they_are_cut(
    messages: list[bytes], pieces: list[int], at_once: int
) -> None:
    data = b"".join(b"\0" + len(one).to_bytes(4, "big") + one for one in messages)
    parts: list[bytes] = []
    while data:
        piece = pieces[len(parts) % len(pieces)]
        parts.append(frame(Kind.DATA, 0, 1, data[:piece]))
        data = data[piece:]

    async def read() -> list[bytes]:
        peer = Peer()
        incoming = peer.stream()
        peer.say(frame(Kind.HEADERS, frames.END_HEADERS, 1, _OPEN))
        said = b"".join(parts)
        for at in range(0, len(said), at_once):
            peer.say(said[at : at + at_once])
        peer.say(frame(Kind.HEADERS, frames.END_HEADERS | frames.END_STREAM, 1, _ENDED))
        assert (incoming.ended, incoming.error) == (True, None)
        return [incoming.next() for _ in range(len(incoming.messages))]

    assert asyncio.run(read()) == messages


async def test_a_stream_gets_no_further_ahead_of_its_reader_than_its_window() -> None:
    peer = Peer()
    incoming = peer.stream()
    await peer.sent()
    peer.say(frame(Kind.HEADERS, frames.END_HEADERS, 1, _OPEN))
    window = 1 << 24
    message = frame(Kind.DATA, 0, 1, b"\0\0\0\x0f\xfb" + b"x" * 4_091)  # 4,096 bytes with its prefix
    for _ in range(window // 4_096):
        peer.say(message)
    assert await peer.sent(Kind.WINDOW_UPDATE) == []
    told = 0
    for _ in range(window // 4_096):
        incoming.next()
        peer.link.give_back(incoming)
        for update in await peer.sent(Kind.WINDOW_UPDATE):
            assert update.stream == 1
            told += frames.number(update.payload)
    assert told == window


@pytest.mark.parametrize(
    ("said", "code"),
    [
        (b"\1\0\0\0\0", grpc.StatusCode.INTERNAL),  # compressed
        (b"\0\0\0\0\7abc", grpc.StatusCode.INTERNAL),  # cut off
        (b"\0\x40\0\0\0", grpc.StatusCode.RESOURCE_EXHAUSTED),
    ],
)
async def test_what_is_no_message_ends_a_stream_after_those_before_it(
    said: bytes, code: grpc.StatusCode
) -> None:
    peer = Peer()
    incoming = peer.stream()
    end = frames.END_HEADERS | frames.END_STREAM
    peer.say(frame(Kind.HEADERS, frames.END_HEADERS, 1, _OPEN))
    peer.say(frame(Kind.DATA, 0, 1, b"\0\0\0\0\2ok" + said), frame(Kind.HEADERS, end, 1, _ENDED))
    assert list(incoming.messages) == [b"ok"]
    error: Any = incoming.error
    assert error.code() is code


async def test_a_peer_that_says_nothing_is_asked_and_then_given_up() -> None:
    peer = Peer(Keepalive(after_s=0.02, patience_s=0.2))
    incoming = peer.stream()
    asked = await eventually_async(lambda: peer.sent(Kind.PING))
    assert asked[0].flags == 0
    peer.say(frame(Kind.PING, frames.ACK, 0, asked[0].payload))
    await eventually_async(lambda: peer.sent(Kind.PING))
    assert not peer.closed
    await eventually_async(lambda: peer.closed)
    error: Any = incoming.error
    assert error.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_peer_that_says_it_is_leaving_and_then_nothing_is_given_up_too() -> None:
    """A machine that is cut off while its server stops: what was open on the connection waited for ever."""
    peer = Peer(Keepalive(after_s=0.02, patience_s=0.05))
    incoming = peer.stream()
    peer.say(frame(Kind.GOAWAY, 0, 0, struct.pack(">II", incoming.stream, 0)))
    await eventually_async(lambda: peer.closed, timeout_s=3)
    error: Any = incoming.error
    assert error.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_peer_of_whom_nothing_is_expected_is_left_alone() -> None:
    peer = Peer(Keepalive(after_s=0.01, patience_s=0.01))
    call = peer.call(b"")
    end = frames.END_HEADERS | frames.END_STREAM
    peer.say(frame(Kind.DATA, 0, 1, b"\0\0\0\0\0"), frame(Kind.HEADERS, end, 1, _OK))
    assert call.answer.result() == b""
    await asyncio.sleep(0.1)  # nothing is to happen
    assert (await peer.sent(Kind.PING), peer.closed) == ([], False)


async def test_pings_and_settings_are_answered() -> None:
    peer = Peer()
    await peer.sent()
    peer.say(settings(()), frame(Kind.PING, 0, 0, b"12345678"))
    told = await peer.sent(Kind.SETTINGS, Kind.PING)
    assert [(one.kind, one.flags, one.payload) for one in told] == [
        (Kind.SETTINGS, frames.ACK, b""),
        (Kind.PING, frames.ACK, b"12345678"),
    ]


async def test_what_breaks_the_protocol_ends_the_connection_and_its_calls() -> None:
    peer = Peer()
    call = peer.call(b"")
    peer.say(frame(Kind.PUSH_PROMISE, 0, 1, b"\0\0\0\2"))
    assert peer.closed
    assert _code(call) is grpc.StatusCode.UNAVAILABLE
