"""Starting, running and stopping the server."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import sqlite3
import ssl
import sys
from collections.abc import Callable
from typing import Final

from towline.http2 import Keepalive
from towline.http2 import Server as CallServer
from towline.scheduler.engine.errors import NotDurableError
from towline.scheduler.server.admin import Admin, Health
from towline.scheduler.server.http import MetricsServer
from towline.scheduler.server.readers import Readers
from towline.scheduler.server.rpc import Binding, admits
from towline.scheduler.server.runtime import Runtime
from towline.scheduler.server.service import Service
from towline.scheduler.server.stats import prometheus
from towline.scheduler.server.upkeep import Upkeep
from towline.scheduler.settings import ConfigurationError, SchedulerSettings, split_address
from towline.scheduler.store import failpoints
from towline.scheduler.store.database import FILE_NAME, FolderLock, connect, migrate, open_folder, unusable

_log = logging.getLogger(__name__)

_SWITCH_S: Final = 0.0005
_STOP_GRACE_S: Final = 1.0
"""Seconds that calls under way get when the server stops."""
_KEEPALIVE: Final = Keepalive(after_s=10.0, patience_s=5.0)
"""Finds workers that are frozen or unplugged: nothing else tells."""


class Server:
    """One scheduler process."""

    def __init__(self, settings: SchedulerSettings) -> None:
        self._settings = settings
        self._lock: FolderLock | None = None
        self._closers: list[Callable[[], None]] = []
        self.address = ""
        self.metrics_address = ""

    async def start(self) -> None:
        """Open the data, rebuild what is runnable, then listen.

        Raises:
            StoreError: The data folder can't be used.
            ConfigurationError: Settings are unsafe or an address can't be bound.
        """
        settings = self._settings
        settings.check()
        failpoints.arm_from(os.environ.get("TOWLINE_SCHEDULER_FAILPOINTS", ""))
        self._lock = open_folder(settings.data)
        path = settings.data / FILE_NAME
        writer = connect(path)
        self._closers.append(writer.close)
        migrate(writer, path)
        try:
            self.runtime = runtime = Runtime(
                path,
                writer,
                limits=settings.limits(),
                cache=settings.cache(),
                leases=settings.leases(),
                test_clock=settings.test_clock,
            )
            self._readers = Readers(path)
            runtime.recover()
        except sqlite3.Error as error:
            raise unusable(path, error) from error
        _tune_interpreter()
        self._binding = binding = Binding(runtime, Service(runtime, self._readers))
        self._health = Health(binding)
        handlers = {
            **binding.handlers(),
            **self._health.handlers(),
            **Admin(runtime, self._readers, binding).handlers(),
        }
        self._calls = CallServer(
            handlers,
            message_bytes_max=settings.max_receive_bytes,
            keepalive=_KEEPALIVE,
            admits=None if settings.token is None else admits(settings.token, self._health.handlers()),
        )
        self._metrics = MetricsServer(lambda: prometheus(runtime))
        await self._listen_for_metrics()  # first: a server that will not start must hand out nothing
        await self._listen()
        self._upkeep = Upkeep(
            runtime,
            self._readers,
            ping_s=settings.health_ping_s,
            retention_s=settings.retention_s,
            unclaimed_after_s=settings.unclaimed_after_s,
        )
        self._upkeep.start()

    async def _listen_for_metrics(self) -> None:
        if self._settings.metrics_listen is None:
            return
        host, port = split_address("--metrics-listen", self._settings.metrics_listen)
        try:
            self.metrics_address = await self._metrics.start(host, port)
        except OSError as error:
            raise ConfigurationError(f"cannot listen for metrics on {host}:{port}: {error}") from error

    async def _listen(self) -> None:
        settings = self._settings
        host, port = split_address("--listen", settings.listen)
        named = f"[{host}]" if ":" in host else host
        tls = _tls(settings)
        try:
            bound = await self._calls.listen(host, port, tls)
        except OSError as error:
            raise ConfigurationError(f"cannot listen on {named}:{port}: {error}") from error
        self.address = f"{named}:{bound}"

    async def stop(self) -> None:
        """End worker streams and calls, flush, close. Takes at most about two seconds."""
        self._health.stop()
        await self._upkeep.stop()
        # A clean end makes workers reconnect without counting a failure.
        for streams in list(self.runtime.dispatcher.streams.values()):
            for stream in list(streams):
                stream.close()
        await self._calls.stop(_STOP_GRACE_S, self._binding.stop)
        await self._metrics.stop()
        with contextlib.suppress(NotDurableError):  # whoever asked for it has been told
            await self.runtime.journal.commit()
        self.close()

    def close(self) -> None:
        """Close the file and give the folder back."""
        if hasattr(self, "_readers"):
            self._readers.close()
            self.runtime.close()
        for close in self._closers:
            close()
        if self._lock is not None:
            self._lock.release()


def _tls(settings: SchedulerSettings) -> ssl.SSLContext | None:
    cert, key = settings.tls_cert, settings.tls_key
    if cert is None or key is None:
        return None
    for flag, path in (("--tls-cert", cert), ("--tls-key", key)):
        try:
            path.read_bytes()
        except OSError as error:
            raise ConfigurationError(f"{flag} {path}: {error.strerror}") from error
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        tls.load_cert_chain(cert, key)
    except ssl.SSLError as error:
        raise ConfigurationError(
            f"--tls-cert {cert} and --tls-key {key} must be PEM files with a certificate and its key: {error}"
        ) from error
    tls.set_alpn_protocols(["h2"])
    return tls


def _tune_interpreter() -> None:
    # The commit thread needs the interpreter for some microseconds when its commit has ended: waiting the
    # usual 5 ms for it would take longer than the commit.
    sys.setswitchinterval(_SWITCH_S)
    # Modules live as long as the process: collections need not look at them, now or later. What a call
    # leaves behind is freed by its count; the thresholds are for cycles, which are few.
    gc.freeze()
    gc.set_threshold(20_000, 50, 100)
    gc.enable()


async def serve(settings: SchedulerSettings, ready: Callable[[Server], None]) -> None:
    """Run until SIGTERM or SIGINT."""
    server = Server(settings)
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    try:
        await server.start()
        ready(server)
    except BaseException:
        server.close()
        raise
    await stopped.wait()
    _log.info("server.stopping")
    await server.stop()
