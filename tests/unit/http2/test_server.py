"""The server's end without a network: what a connection does with what it is told."""

from __future__ import annotations

import asyncio
import gzip
import struct
import zlib
from collections.abc import Callable
from typing import Any

import grpc
import hpack
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.http2.far_end import FarEnd
from tests.waiting import eventually_async

from towline.http2 import Keepalive, ServedCall, frames
from towline.http2.frames import END_HEADERS, END_STREAM, Kind, Setting, frame, settings
from towline.http2.headers import HeaderReader, header_block
from towline.http2.server_connection import ServerConnection

LIMIT = 100_000
CALL = (
    (":method", "POST"),
    (":scheme", "http"),
    (":path", "/service/take"),
    ("te", "trailers"),
    ("content-type", "application/grpc"),
)


def message(data: bytes, *, compressed: bool = False) -> bytes:
    return bytes((compressed,)) + len(data).to_bytes(4, "big") + data


class Caller(FarEnd):
    """Who calls. The handler of ``/service/take`` keeps calls and messages."""

    def __init__(self, keepalive: Keepalive | None = None, *, greet: bool = True) -> None:
        self.calls: list[ServedCall] = []
        self.messages: list[bytes] = []
        handlers = {"/service/take": self._take, "/service/fail": self._fail}
        self.connection = ServerConnection(handlers, LIMIT, keepalive or Keepalive(), set())
        self._next, self._headers = 1, HeaderReader()
        super().__init__(self.connection, passes=3)
        if greet:
            self.say(frames.PREFACE, settings(()))

    def _take(self, call: ServedCall, data: bytes) -> None:
        self.calls.append(call)
        self.messages.append(data)

    def _fail(self, _call: ServedCall, _data: bytes) -> None:
        raise RuntimeError("a bug")

    def call(self, data: bytes | None = b"", *headers: tuple[str, str], path: str = "/service/take") -> int:
        """Begin a call; with data None its request is still to come."""
        number, self._next = self._next, self._next + 2
        named = [(name, path if name == ":path" else value) for name, value in CALL]
        named = [one for one in named if one[0] not in dict(headers)] + list(headers)
        block = header_block(named)
        self.say(frame(Kind.HEADERS, END_HEADERS, number, block))
        if data is not None:
            self.say(frame(Kind.DATA, END_STREAM, number, message(data)))
        return number

    async def answer(self, number: int) -> tuple[dict[str, str], bytes, dict[str, str]]:
        """Headers, data and trailers of a call that is over."""
        blocks: list[dict[str, str]] = []
        data = b""
        for one in await self.sent(Kind.HEADERS, Kind.DATA):
            if one.stream != number:
                continue
            if one.kind == Kind.HEADERS:
                assert not (blocks and blocks[-1].get("grpc-status")), "said after the end"
                blocks.append(dict(self._headers.read(one.payload)))
                ended = bool(one.flags & END_STREAM)
                assert ended == ("grpc-status" in blocks[-1] or blocks[-1][":status"] != "200")
            else:
                data += one.payload
        return blocks[0], data, blocks[-1]


def refused(code: grpc.StatusCode) -> str:
    return str(code.value[0])


async def test_a_call_is_taken_and_answered() -> None:
    caller = Caller()
    number = caller.call(b"hello", ("workerid", "one"))
    (call,) = caller.calls
    assert ("workerid", "one") in call.metadata
    assert [name for name, _ in call.metadata if name.startswith(":")] == []

    call.reply(caller.messages[0] + b" yourself")

    headers, data, trailers = await caller.answer(number)
    assert (headers[":status"], headers["content-type"]) == ("200", "application/grpc")
    assert (data, trailers["grpc-status"]) == (message(b"hello yourself"), "0")
    assert caller.connection.calls == 0


@pytest.mark.parametrize("size", [5, 20_000], ids=["short", "long"])
async def test_a_caller_that_asks_for_a_smaller_table_is_told_that_there_is_none(size: int) -> None:
    caller = Caller(greet=False)
    caller.say(frames.PREFACE, settings(((Setting.HEADER_TABLE_SIZE, 0),)))
    decoder: Any = hpack.Decoder()
    decoder.max_allowed_table_size = 0
    for _ in range(2):
        caller.call()
        caller.calls[-1].reply(b"x" * size)
        headers, trailers = await caller.sent(Kind.HEADERS)
        # Raises where the encoder has not made its table smaller (RFC 7541, 4.2).
        assert (":status", "200") in decoder.decode(headers.payload)
        assert decoder.decode(trailers.payload) == [("grpc-status", "0")]


async def test_what_is_said_in_one_pass_of_the_loop_and_the_next_leaves_together() -> None:
    caller = Caller()
    caller.call(b"1")
    caller.call(b"2")
    await caller.sent()
    writes: list[bytes] = []
    caller.write = writes.append  # type: ignore[method-assign]
    caller.calls[0].reply(b"first")
    asyncio.get_running_loop().call_soon(caller.calls[1].reply, b"second")
    for _ in range(4):
        await asyncio.sleep(0)
    assert len(writes) == 1
    assert b"first" in writes[0]
    assert b"second" in writes[0]


@given(st.binary(max_size=400), st.lists(st.integers(1, 60), min_size=1), st.integers(1, 90))
def test_a_request_is_read_however_it_is_cut(data: bytes, pieces: list[int], at_once: int) -> None:
    async def taken() -> list[bytes]:
        caller = Caller(greet=False)
        whole, parts = message(data), [frame(Kind.HEADERS, END_HEADERS, 1, header_block(CALL))]
        while whole:
            piece = pieces[len(parts) % len(pieces)]
            whole, part = whole[piece:], whole[:piece]
            parts.append(frame(Kind.DATA, 0 if whole else END_STREAM, 1, part))
        said = frames.PREFACE + settings(()) + b"".join(parts)
        for at in range(0, len(said), at_once):
            caller.say(said[at : at + at_once])
        return caller.messages

    assert asyncio.run(taken()) == [data]


async def test_no_more_is_sent_than_the_caller_takes_and_the_status_comes_last() -> None:
    caller = Caller()
    caller.say(settings(((Setting.INITIAL_WINDOW_SIZE, 10),)))
    number = caller.call()
    caller.calls[0].reply(b"x" * 20)
    first = await caller.sent(Kind.HEADERS, Kind.DATA)
    assert [(one.kind, len(one.payload)) for one in first[1:]] == [(Kind.DATA, 10)]
    caller.say(frame(Kind.WINDOW_UPDATE, 0, number, struct.pack(">I", 100)))
    rest = await caller.sent(Kind.HEADERS, Kind.DATA)
    assert [(one.kind, one.flags & END_STREAM) for one in rest] == [
        (Kind.DATA, 0),
        (Kind.HEADERS, END_STREAM),
    ]
    assert len(rest[0].payload) == 15
    assert caller.connection.calls == 0


async def test_messages_of_a_stream_follow_when_the_caller_has_taken_those_before() -> None:
    caller = Caller()
    caller.say(settings(((Setting.INITIAL_WINDOW_SIZE, 8),)))
    number = caller.call()
    (call,), told = caller.calls, []
    call.send((b"abc", b"de"), told.append)
    data = b"".join(one.payload for one in await caller.sent(Kind.DATA))
    assert told == []
    caller.say(frame(Kind.WINDOW_UPDATE, 0, number, struct.pack(">I", 50)))
    data += b"".join(one.payload for one in await caller.sent(Kind.DATA))
    assert (data, told) == (message(b"abc") + message(b"de"), [True])
    call.end()
    (last,) = await caller.sent(Kind.HEADERS, Kind.DATA)
    assert last.flags == END_HEADERS | END_STREAM


async def test_a_stream_waits_while_the_connection_is_full() -> None:
    caller = Caller()
    caller.call()
    told: list[bool] = []
    caller.connection.pause_writing()
    assert not caller.reading, "who does not take answers is not to ask for more"
    caller.calls[0].send((b"abc",), told.append)
    assert await caller.sent(Kind.DATA) != []
    assert told == []
    caller.connection.resume_writing()
    assert (told, caller.reading) == ([True], True)


async def test_an_end_follows_what_is_still_to_be_sent() -> None:
    caller = Caller()
    caller.say(settings(((Setting.INITIAL_WINDOW_SIZE, 0),)))
    number = caller.call()
    (call,), told = caller.calls, []
    call.send((b"abc",), told.append)
    call.end(grpc.StatusCode.ABORTED, "ä: 50 %")
    caller.say(frame(Kind.WINDOW_UPDATE, 0, number, struct.pack(">I", 50)))
    _, data, trailers = await caller.answer(number)
    assert (data, trailers) == (
        message(b"abc"),
        {"grpc-status": refused(grpc.StatusCode.ABORTED), "grpc-message": "%C3%A4: 50 %25"},
    )


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (message(b"x" * LIMIT), None),
        (message(b"x" * (LIMIT + 1)), grpc.StatusCode.RESOURCE_EXHAUSTED),
        (b"", grpc.StatusCode.INTERNAL),
        (b"\0\0\0", grpc.StatusCode.INTERNAL),
        (message(b"abc")[:-1], grpc.StatusCode.INTERNAL),
        (message(b"abc") + message(b"d"), grpc.StatusCode.INTERNAL),
        (message(b"abc", compressed=True), grpc.StatusCode.INTERNAL),
    ],
)
async def test_a_request_that_is_no_single_message_is_refused(
    data: bytes, code: grpc.StatusCode | None
) -> None:
    caller = Caller()
    number = caller.call(None)
    parts = [data[at : at + 16_384] for at in range(0, len(data), 16_384)] or [b""]
    for part in parts[:-1]:
        caller.say(frame(Kind.DATA, 0, number, part))
    caller.say(frame(Kind.DATA, END_STREAM, number, parts[-1]))
    if code is None:
        assert caller.messages == [data[5:]]
    else:
        _, _, trailers = await caller.answer(number)
        assert (trailers["grpc-status"], caller.messages) == (refused(code), [])


async def test_a_message_that_is_too_large_is_refused_before_it_is_there() -> None:
    caller = Caller()
    number = caller.call(None)
    caller.say(frame(Kind.DATA, 0, number, b"\0\x7f\0\0\0abc"))
    told = await caller.sent(Kind.HEADERS, Kind.RST_STREAM)
    assert [one.kind for one in told] == [Kind.HEADERS, Kind.RST_STREAM]
    assert frames.number(told[1].payload) == 0, "no error: the rest is just not wanted"
    caller.say(frame(Kind.DATA, END_STREAM, number, b"more"))
    assert not caller.closed


async def test_a_request_that_goes_on_after_its_message_is_refused_before_it_ends() -> None:
    """It would be kept without bound, and before anybody has asked for a token."""
    caller = Caller()
    number = caller.call(None)
    caller.say(frame(Kind.DATA, 0, number, message(b"abc")))
    caller.say(frame(Kind.DATA, 0, number, b"d"))
    _, _, trailers = await caller.answer(number)
    assert (trailers["grpc-status"], caller.messages) == (refused(grpc.StatusCode.INTERNAL), [])


@pytest.mark.parametrize(("name", "compress"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
async def test_compressed_requests_are_read(name: str, compress: Callable[[bytes], bytes]) -> None:
    caller = Caller()
    number = caller.call(None, ("grpc-encoding", name))
    caller.say(frame(Kind.DATA, END_STREAM, number, message(compress(b"hello"), compressed=True)))
    assert caller.messages == [b"hello"]

    bomb = caller.call(None, ("grpc-encoding", name))
    caller.say(frame(Kind.DATA, END_STREAM, bomb, message(compress(b"x" * (LIMIT + 1)), compressed=True)))
    _, _, trailers = await caller.answer(bomb)
    assert trailers["grpc-status"] == refused(grpc.StatusCode.RESOURCE_EXHAUSTED)

    broken = caller.call(None, ("grpc-encoding", name))
    cut = compress(b"hello" * 50)[:-3]
    caller.say(frame(Kind.DATA, END_STREAM, broken, message(cut, compressed=True)))
    _, _, trailers = await caller.answer(broken)
    assert trailers["grpc-status"] == refused(grpc.StatusCode.INTERNAL)


@pytest.mark.parametrize(
    ("header", "http", "code"),
    [
        (("content-type", "application/json"), "415", None),
        ((":method", "GET"), "405", None),
        ((":path", "/service/other"), "200", grpc.StatusCode.UNIMPLEMENTED),
        (("grpc-encoding", "snappy"), "200", grpc.StatusCode.UNIMPLEMENTED),
        (("grpc-timeout", "soon"), "200", grpc.StatusCode.UNIMPLEMENTED),
    ],
)
async def test_what_can_not_be_served_is_said(
    header: tuple[str, str], http: str, code: grpc.StatusCode | None
) -> None:
    caller = Caller()
    number = caller.call(b"", header)
    headers, _, trailers = await caller.answer(number)
    assert headers[":status"] == http
    if code is not None:
        assert trailers["grpc-status"] == refused(code)
    assert (caller.messages, caller.connection.calls, caller.closed) == ([], 0, False)


async def test_a_handler_that_fails_ends_its_call_and_no_other() -> None:
    caller = Caller()
    failing, fine = caller.call(path="/service/fail"), caller.call(b"fine")
    caller.calls[0].reply(b"yes")
    told = await caller.sent(Kind.HEADERS, Kind.DATA)
    ended = {one.stream for one in told if one.flags & END_STREAM and one.kind == Kind.HEADERS}
    assert ended == {failing, fine}


async def test_who_watches_a_call_is_told_that_its_caller_is_gone() -> None:
    caller = Caller()
    gone: list[str] = []
    cancelled, lost = caller.call(), caller.call()
    caller.calls[0].watch(lambda: gone.append("cancelled"))
    caller.calls[1].watch(lambda: gone.append("lost"))
    caller.call()
    caller.calls[2].watch(lambda: gone.append("answered"))
    caller.calls[2].reply(b"")

    caller.say(frame(Kind.RST_STREAM, 0, cancelled, struct.pack(">I", 8)))
    assert gone == ["cancelled"]
    caller.connection.connection_lost(None)
    assert gone == ["cancelled", "lost"]
    caller.calls[0].reply(b"too late")
    caller.calls[1].end()
    told: list[bool] = []
    caller.calls[1].send((b"too late",), told.append)
    await asyncio.sleep(0)
    assert (told, caller.connection.calls, lost) == ([False], 0, 3)


async def test_a_call_that_is_watched_ends_when_its_time_is_up() -> None:
    caller = Caller()
    gone: list[int] = []
    number = caller.call(b"", ("grpc-timeout", "20m"))
    caller.calls[0].watch(lambda: gone.append(1))
    await eventually_async(lambda: gone)
    _, _, trailers = await caller.answer(number)
    assert trailers["grpc-status"] == refused(grpc.StatusCode.DEADLINE_EXCEEDED)
    assert (gone, caller.calls[0].ended) == ([1], True)


async def test_a_connection_that_is_to_end_takes_no_further_calls() -> None:
    caller = Caller()
    before = caller.call(b"before")
    caller.connection.go_away()
    (told,) = await caller.sent(Kind.GOAWAY)
    assert frames.number(told.payload) == before
    caller.call(b"after")
    assert caller.messages == [b"before"]
    caller.calls[0].reply(b"")
    _, _, trailers = await caller.answer(before)
    assert trailers["grpc-status"] == "0"


async def test_a_caller_that_says_nothing_is_asked_and_then_given_up() -> None:
    caller = Caller(Keepalive(after_s=0.02, patience_s=0.2))
    gone: list[int] = []
    caller.call()
    caller.calls[0].watch(lambda: gone.append(1))
    asked = await eventually_async(lambda: caller.sent(Kind.PING))
    caller.say(frame(Kind.PING, frames.ACK, 0, asked[0].payload))
    await eventually_async(lambda: caller.sent(Kind.PING))
    assert not caller.closed
    await eventually_async(lambda: caller.closed)
    assert gone == [1]


@pytest.mark.parametrize("began", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\0", b"PRI * HTTP/2.1\r\n"])
async def test_who_does_not_speak_http2_is_told_and_let_go(began: bytes) -> None:
    caller = Caller(greet=False)
    for at in range(len(began)):
        caller.say(began[at : at + 1])
    assert caller.closed
    assert caller.data.startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize(
    "said",
    [
        frame(Kind.HEADERS, END_HEADERS, 2, header_block(CALL)),
        frame(Kind.HEADERS, END_HEADERS, 1, b"\xff\xff\xff"),
        frame(Kind.HEADERS, 0, 1, b"") + frame(Kind.DATA, 0, 1, b""),
        frame(Kind.CONTINUATION, END_HEADERS, 1, b""),
        frame(Kind.PUSH_PROMISE, 0, 1, b"\0\0\0\2"),
        b"\xff\xff\xff\0\0\0\0\0\1",
    ],
)
async def test_what_breaks_the_protocol_ends_the_connection_and_says_why(said: bytes) -> None:
    caller = Caller()
    caller.call(b"fine")
    gone: list[int] = []
    caller.calls[0].watch(lambda: gone.append(1))
    caller.say(said)
    (told,) = await caller.sent(Kind.GOAWAY)
    assert struct.unpack(">I", told.payload[4:8]) == (1,)
    assert (caller.closed, gone) == (True, [1])


@given(
    st.lists(st.tuples(st.sampled_from(Kind), st.integers(0, 255), st.integers(0, 9), st.binary(max_size=40)))
)
def test_whatever_comes_the_connection_goes_on_or_ends(sent: list[tuple[Any, int, int, bytes]]) -> None:
    async def tell() -> None:
        caller = Caller()
        number = caller.call(b"fine")
        for one in sent:
            if not caller.closed:
                caller.say(frame(*one))
        if not caller.closed and caller.connection.calls and not caller.calls[0].ended:
            caller.calls[0].reply(b"")
            assert number == 1
        await caller.sent()

    asyncio.run(tell())
