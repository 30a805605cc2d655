"""uvicorn's HTTP protocol, where an event stream's chunks are written and its client leaves without a task.

Of what an event costs each client, most would be the way through tasks and ASGI calls; here it is one write.
Whenever more than that is needed (the client is slow, the response not under way), the usual way is taken.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from towline.relay.streaming import DIRECT


class StreamingProtocol(HttpToolsProtocol):
    """See the module."""

    _lost = False
    _when_lost: Callable[[], None] | None = None

    def connection_lost(self, exc: Exception | None) -> None:
        """The other side is gone: called by the transport."""
        super().connection_lost(exc)
        self._lost = True
        self.when_lost(self._when_lost)
        if self.cycle is not None:  # pyright: ignore[reportUnnecessaryComparison] - a connection without a request
            # Else each connection that has been would be left to the garbage collector.
            cast("dict[str, Any]", self.cycle.scope)["extensions"].clear()

    def when_lost(self, call: Callable[[], None] | None) -> None:
        """Have `call` called once the connection is lost, at once if it is; None: nobody cares any more."""
        self._when_lost = call
        if self._lost and call is not None:
            self._when_lost = None
            call()

    def unsent(self) -> int:
        """Bytes that the other side has not taken yet, as far as they are in this process."""
        return self.transport.get_write_buffer_size()

    async def taken(self) -> None:
        """Wait until the other side has taken all but a little of what was written, or is gone.

        uvicorn waits for that before it writes more, and after the last write not at all.
        """
        await self.flow.drain()

    def abort(self) -> None:
        """Close the connection at once, with what is unsent."""
        self.transport.abort()

    def on_message_begin(self) -> None:
        """A request begins: called by the parser."""
        super().on_message_begin()
        cast("dict[str, Any]", self.scope)["extensions"] = {DIRECT: self}

    def write_chunk(self, chunk: bytes) -> bool:
        """Write a chunk of the body of the response under way; False if it has to go the usual way."""
        cycle, transport = self.cycle, self.transport
        if (
            not cycle.chunked_encoding
            or cycle.response_complete
            or cycle.disconnected
            or self.flow.write_paused
            or transport.is_closing()
        ):
            return False
        transport.write(chunk)
        return True
