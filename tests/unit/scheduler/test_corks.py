"""What follows from a commit leaves in one piece. On real connections."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from towline.scheduler.server.corks import Connection, Corks

pytestmark = pytest.mark.skipif(not hasattr(socket, "TCP_CORK"), reason="needs Linux")


class Pair:
    """A connection: what the server has of it, and the other side."""

    def __init__(self, exits: ExitStack, family: socket.AddressFamily = socket.AF_INET) -> None:
        listening = exits.enter_context(socket.socket(family))
        listening.bind(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0))
        listening.listen()
        self.client = exits.enter_context(socket.create_connection(listening.getsockname()[:2]))
        self.client.setblocking(False)
        self.server = exits.enter_context(listening.accept()[0])
        # As gRPC's core has it.
        self.server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        host, port = self.client.getsockname()[:2]
        self.peer = f"ipv6:%5B{host}%5D:{port}".encode() if ":" in host else f"ipv4:{host}:{port}".encode()

    def received(self) -> bytes:
        """What can be read now."""
        try:
            return self.client.recv(1000)
        except BlockingIOError:
            return b""


@pytest.fixture
def exits() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


async def known(exits: ExitStack, pair: Pair) -> tuple[Corks, Connection]:
    """Corks that have met the connection in an earlier commit."""
    corks = Corks(asyncio.get_running_loop())
    exits.callback(corks.close)
    corks.hold()
    corks.before(lambda: pair.peer)
    found = corks.before(lambda: pair.peer)
    assert found is not None
    await passes(3)
    return corks, found


def answer(corks: Corks, pair: Pair, message: bytes) -> None:
    """Somebody gets an answer after a commit."""
    corks.hold()
    assert corks.before(lambda: pair.peer) is not None
    pair.server.send(message)


def begin_series(corks: Corks, connection: Connection, pair: Pair, message: bytes) -> None:
    """A series of messages begins after a commit, with this one."""
    corks.hold()
    assert corks.before(lambda: pair.peer) is connection
    connection.write()
    pair.server.send(message)


async def passes(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
async def test_messages_after_a_commit_leave_together(exits: ExitStack, family: socket.AddressFamily) -> None:
    pair = Pair(exits, family)
    corks, _ = await known(exits, pair)

    corks.hold()
    for message in (b"answer ", b"answer ", b"work"):
        assert corks.before(lambda: pair.peer) is not None
        pair.server.send(message)
    assert pair.received() == b""
    await passes(3)

    assert pair.received() == b"answer answer work"


async def test_what_is_made_runnable_by_a_commit_and_written_in_the_next_pass_is_kept_too(
    exits: ExitStack,
) -> None:
    pair = Pair(exits)
    corks, _ = await known(exits, pair)
    loop = asyncio.get_running_loop()

    def write_work() -> None:
        corks.before(lambda: pair.peer)
        pair.server.send(b"work")

    answer(corks, pair, b"answer ")
    loop.call_soon(write_work)
    await passes(4)

    assert pair.received() == b"answer work"


async def test_without_a_commit_each_message_leaves_at_once(exits: ExitStack) -> None:
    pair = Pair(exits)
    corks, _ = await known(exits, pair)

    assert corks.before(lambda: pair.peer) is None
    pair.server.send(b"now")

    assert pair.received() == b"now"


async def test_a_series_that_another_thread_goes_on_with_is_kept_together(exits: ExitStack) -> None:
    pair = Pair(exits)
    corks, connection = await known(exits, pair)

    begin_series(corks, connection, pair, b"first ")
    await passes(3)
    assert pair.received() == b""

    def rest() -> None:
        pair.server.send(b"last")
        connection.written()

    thread = threading.Thread(target=rest)
    thread.start()
    thread.join()

    assert pair.received() == b"first last"


async def test_a_series_that_gets_stuck_keeps_nothing_back_for_long(exits: ExitStack) -> None:
    pair = Pair(exits)
    corks, connection = await known(exits, pair)

    begin_series(corks, connection, pair, b"first")
    await asyncio.sleep(0.02)

    assert pair.received() == b"first"  # by itself the kernel would keep it for 0.2 s
    connection.written()
    pair.server.send(b"later")
    assert pair.received() == b"later"


async def test_a_commit_during_a_series_keeps_what_follows_from_it(exits: ExitStack) -> None:
    pair = Pair(exits)
    corks, connection = await known(exits, pair)
    begin_series(corks, connection, pair, b"series ")
    await passes(3)

    corks.hold()
    corks.before(lambda: pair.peer)
    connection.written()
    pair.server.send(b"answer")
    assert pair.received() == b""
    await passes(3)

    assert pair.received() == b"series answer"


async def test_one_message_after_a_commit_is_not_searched_for(exits: ExitStack) -> None:
    pair = Pair(exits)
    corks = Corks(asyncio.get_running_loop())
    files = len(os.listdir("/proc/self/fd"))

    for _ in range(3):
        corks.hold()
        assert corks.before(lambda: pair.peer) is None
        await passes(3)

    assert len(os.listdir("/proc/self/fd")) == files


async def test_connections_that_are_gone_disturb_nobody_and_are_given_up(exits: ExitStack) -> None:
    gone, pair = Pair(exits), Pair(exits)
    corks, connection = await known(exits, gone)
    gone.server.shutdown(socket.SHUT_RDWR)
    gone.server.close()
    gone.client.close()

    corks.hold()
    assert corks.before(lambda: gone.peer) is connection
    corks.before(lambda: pair.peer)
    assert corks.before(lambda: pair.peer) is not None
    await passes(3)

    assert connection.file == -1


@pytest.mark.parametrize("peer", [b"unix:", b"ipv4:127.0.0.1:1", b"something new"])
async def test_whoever_is_not_found_is_served_all_the_same(exits: ExitStack, peer: bytes) -> None:
    corks = Corks(asyncio.get_running_loop())
    exits.callback(corks.close)

    corks.hold()

    assert [corks.before(lambda: peer) for _ in range(3)] == [None, None, None]


async def test_sockets_are_given_back_at_the_end(exits: ExitStack) -> None:
    pair = Pair(exits)
    corks, connection = await known(exits, pair)
    answer(corks, pair, b"held")

    corks.close()
    assert pair.received() == b"held"
    await passes(3)

    assert connection.file == -1
    assert pair.server.fileno() != -1
