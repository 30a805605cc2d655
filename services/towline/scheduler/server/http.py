"""The few lines of HTTP that Prometheus needs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class MetricsServer:
    """Serves ``/metrics`` and ``/healthz``."""

    def __init__(self, render: Callable[[], str]) -> None:
        self._render = render
        self._server: asyncio.Server | None = None

    async def start(self, host: str, port: int) -> str:
        """Listen.

        Returns:
            The real address.
        """
        self._server = await asyncio.start_server(self._serve, host, port)
        name = self._server.sockets[0].getsockname()
        return f"{name[0]}:{name[1]}"

    async def stop(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(10):
                head = await reader.readuntil(b"\r\n\r\n")
            parts = head.split(b" ", 2)
            path = parts[1].split(b"?", 1)[0] if len(parts) > 1 else b""
            status, body = self._answer(path)
            writer.write(
                f"HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n"
                f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode()
                + body
            )
            await writer.drain()
        except (TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError):
            pass  # a caller that went away or sent something else
        finally:
            writer.close()

    def _answer(self, path: bytes) -> tuple[str, bytes]:
        if path == b"/metrics":
            return "200 OK", self._render().encode()
        if path == b"/healthz":
            return "200 OK", b"ok\n"
        return "404 Not Found", b"not found\n"
