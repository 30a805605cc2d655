"""uvicorn's HTTP protocol with one thing more: an event stream's next chunk may be written without a task.

Of what an event costs each client, most would be the way through tasks and ASGI calls; here it is one write.
Whenever more than that is needed (the client is slow, the response not under way), the usual way is taken.
"""

from __future__ import annotations

from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from towline.relay.streaming import DIRECT


class StreamingProtocol(HttpToolsProtocol):
    """See the module."""

    def on_message_begin(self) -> None:
        """A request begins: called by the parser."""
        super().on_message_begin()
        cast("dict[str, Any]", self.scope)["extensions"] = {DIRECT: self.write_chunk}

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
