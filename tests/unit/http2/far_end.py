"""The other end of a connection that has no network, and its transport."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from towline.http2.connection import Connection
from towline.http2.frames import Frame, FrameReader, Kind


class FarEnd:
    """Reads what a connection sends, says what a test wants.

    Args:
        connection: The end under test.
        passes: Of the loop in which it gathers what it sends.
    """

    def __init__(self, connection: Connection[Any], *, passes: int) -> None:
        self._connection: Final = connection
        self._passes = passes
        self._frames = FrameReader()
        self.data = b""
        """What came and was not asked for yet."""
        self.closed = False
        self.reading = True
        connection.connection_made(self)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]

    # As a transport.

    def write(self, data: bytes) -> None:
        self.data += data

    def is_closing(self) -> bool:
        return self.closed

    def abort(self) -> None:
        self.closed = True

    close = abort

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    # As the peer.

    async def sent(self, *kinds: Kind) -> list[Frame]:
        """What the connection has sent since, of these kinds."""
        for _ in range(self._passes):
            await asyncio.sleep(0)
        data, self.data = self.data, b""
        return [one for one in self._frames.feed(data) if one.kind in kinds]

    def say(self, *data: bytes) -> None:
        self._connection.data_received(b"".join(data))
