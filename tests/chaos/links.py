"""TCP proxies between parts: a link passes everything on until it is parted, then nothing until it is healed.

Parted as a network is: connections stay open and silent, new ones are taken and get no answer, and what was
sent meanwhile arrives afterwards.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Final, Self

from towline.dev import ports
from towline.dev.kafka import KafkaPart

_CHUNK_BYTES: Final = 64 * 1024


class Link:
    """One proxy on a port of its own."""

    def __init__(self, target_port: int) -> None:
        self.port = ports.lease()
        self._target_port = target_port
        self._gate: asyncio.Event | None = None
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        """Listen. On the loop that `set_parted` is called on."""
        self._gate = asyncio.Event()
        self._gate.set()
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)

    def set_parted(self, parted: bool) -> None:
        """Let nothing through, or all that has been waiting."""
        assert self._gate is not None
        if parted:
            self._gate.clear()
        else:
            self._gate.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert self._gate is not None
        await self._gate.wait()
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self._target_port)
        except OSError:
            writer.close()
            return
        async with asyncio.TaskGroup() as pumps:
            pumps.create_task(self._pump(reader, back))
            pumps.create_task(self._pump(there, writer))

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert self._gate is not None
        with suppress(OSError):
            while data := await reader.read(_CHUNK_BYTES):
                await self._gate.wait()
                writer.write(data)
                await writer.drain()
        # That the other side is gone is news too.
        await self._gate.wait()
        writer.close()


class Links:
    """All links, in a thread of their own: parts use them before and after any event loop of the test's."""

    def __init__(self, links: Mapping[str, Link]) -> None:
        self._links = links
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="links", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        for link in self._links.values():
            asyncio.run_coroutine_threadsafe(link.open(), self._loop).result()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _close(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def set_parted(self, name: str, parted: bool) -> None:
        """See `Link.set_parted`."""
        self._loop.call_soon_threadsafe(self._links[name].set_parted, parted)


class LinkedKafka(KafkaPart):
    """Kafka that also listens behind links. Clients that come by a link are told the link's address."""

    listeners: Mapping[str, tuple[int, Link]]
    """Name, port behind the link, link."""

    def command(self) -> Sequence[str]:
        command = super().command()
        properties = self.data / "server.properties"
        lines = properties.read_text().splitlines()
        more = {
            "listeners": [f"{name}://127.0.0.1:{port}" for name, (port, _) in self.listeners.items()],
            "advertised.listeners": [
                f"{name}://127.0.0.1:{link.port}" for name, (_, link) in self.listeners.items()
            ],
            "listener.security.protocol.map": [f"{name}:PLAINTEXT" for name in self.listeners],
        }
        changed = [",".join([line, *more.get(line.partition("=")[0], [])]) for line in lines]
        properties.write_text("\n".join(changed) + "\n")
        return command
