"""Listens for connections, and ends them in order."""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

from towline.http2.connection import Keepalive
from towline.http2.served import Admits, Handler
from towline.http2.server_connection import ServerConnection

_STOP_S: Final = 1.0
"""Seconds that ended calls and connections get to be told of it."""
_BACKLOG: Final = 1_024
_NOT_HERE: Final = frozenset({errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT})


class Server:
    """Listens, and gives each call to the handler of its path. Belongs to the loop that it is made on.

    Args:
        handlers: By path, ``/service/method``.
        message_bytes_max: A request with a larger message is refused.
        keepalive: When a silent peer is gone.
        admits: Whom it does not admit ends as UNAUTHENTICATED; without it, all are.
    """

    def __init__(
        self,
        handlers: Mapping[str, Handler],
        *,
        message_bytes_max: int,
        keepalive: Keepalive,
        admits: Admits | None = None,
    ) -> None:
        self._listeners: list[asyncio.Server] = []
        self._connections: set[ServerConnection] = set()
        self._accept = partial(
            ServerConnection,
            dict(handlers),
            message_bytes_max,
            keepalive,
            self._connections,
            admits=admits,
        )

    async def listen(self, host: str, port: int, tls: ssl.SSLContext | None = None) -> int:
        """Take calls at an address; ``::`` is every address of both families.

        Args:
            host: Name or address.
            port: TCP port; 0 takes a free one.
            tls: Makes it TLS. Must agree on ``h2`` only.

        Returns:
            The port.

        Raises:
            OSError: The address can't be taken.
        """
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, _, _, _, address in dict.fromkeys(found):
            try:
                listening = socket.create_server(
                    (address[0], port),
                    family=family,
                    backlog=_BACKLOG,
                    dualstack_ipv6=host == "::" and socket.has_dualstack_ipv6(),
                )
            except OSError as error:
                if error.errno in _NOT_HERE and self._listeners:
                    continue  # a name for an address of a family that this machine has not got
                raise
            port = listening.getsockname()[1]
            self._listeners.append(
                await loop.create_server(self._accept, sock=listening, ssl=tls, backlog=_BACKLOG)
            )
        return port

    async def stop(self, grace_s: float, end_calls: Callable[[], None]) -> None:
        """Refuse new calls, wait for those under way, then let ``end_calls`` end what is left of them."""
        for listener in self._listeners:
            listener.close()
        for connection in self._connections:
            connection.go_away()
        if not await self._wait_until(self._idle, grace_s):
            end_calls()
            await self._wait_until(self._idle, _STOP_S)
        for connection in list(self._connections):
            connection.close()
        await self._wait_until(lambda: not self._connections, _STOP_S)
        for connection in list(self._connections):
            connection.lose("the server has stopped")

    def _idle(self) -> bool:
        return not any(connection.calls for connection in self._connections)

    @staticmethod
    async def _wait_until(reached: Callable[[], bool], seconds: float) -> bool:
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        while not reached():
            if loop.time() >= until:
                return False
            await asyncio.sleep(0.01)
        return True
