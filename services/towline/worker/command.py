"""`towline worker`: hosts an app's agents, orchestrations, activities and workflows."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, suppress
from typing import Annotated, NoReturn

import typer

from towline.contracts.errors import TowlineError
from towline.contracts.payloads import open_payload_store
from towline.contracts.producer import EventProducer
from towline.contracts.settings import KafkaSettings, PayloadSettings, RedisSettings, SchedulerSettings
from towline.telemetry import HealthServer, ListenError, event_loop, set_up
from towline.telemetry.listen import split_listen
from towline.telemetry.metrics import observe_value
from towline.worker import loader
from towline.worker.host import Host, until_signalled
from towline.worker.settings import WorkerSettings
from towline.worker.streams import StreamObserver, StreamSettings, TokenWriter
from towline.worker.supervisor import UNUSABLE, Plan, Supervisor, stop_with_parent

app = typer.Typer(
    pretty_exceptions_enable=False, help="Host an app: agents, orchestrations, activities, workflows."
)
_log = logging.getLogger(__name__)

_DELIVERY_TIMEOUT_S = 5.0
"""One try to publish. The turn tries again for as long as it takes; the log and /readyz tell of each."""

_THREADS_END_S = 1.0
"""How long calls into the file system or for an address may take after all else has ended."""

_AGAIN = 1
"""Exit status for what another start may mend: whoever has the address may be about to leave."""


@app.callback(invoke_without_command=True)
def worker(
    target: Annotated[
        str,
        typer.Option(
            "--app", metavar="MODULE:ATTR", help="A setup_worker(worker) function or a towline.worker.App."
        ),
    ] = "",
    processes: Annotated[
        int | None,
        typer.Option(min=1, help="Worker processes under this one; default: TOWLINE_WORKER_PROCESSES, 1."),
    ] = None,
    supervised: Annotated[bool, typer.Option(hidden=True)] = False,
) -> None:
    """Host an app until SIGTERM."""
    settings = WorkerSettings()
    chosen = target or settings.app
    if not chosen:
        _fail("--app MODULE:ATTR (or TOWLINE_WORKER_APP) is needed: what to host")
    count = processes or settings.processes
    if count > 1 and not supervised:
        _supervise(chosen, count, settings)
        return
    clean = False
    with set_up("towline-worker"):
        try:
            clean = event_loop.run(_host(loader.load(chosen), settings, supervised=supervised))
        except TowlineError as error:
            _fail(str(error))
        except ListenError as error:
            _fail(str(error), status=_AGAIN)
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    if not clean:
        # Threads that hang in a model call or an activity would hold the interpreter up for as long as
        # they like; what they do is handed out again.
        os._exit(0)


def _supervise(target: str, count: int, settings: WorkerSettings) -> None:
    host, port = split_listen(settings.http_listen)
    if not 0 < port <= 65_535 - count:
        _fail("TOWLINE_WORKER_HTTP_LISTEN needs a port: the processes serve those that follow it")
    in_url = f"[{host}]" if ":" in host else host
    listens = [f"{in_url}:{port + number}" for number in range(1, count + 1)]
    plan = Plan(
        command=lambda _: (sys.executable, "-m", "towline.worker", "--app", target, "--supervised"),
        environment=lambda number: {**os.environ, "TOWLINE_WORKER_HTTP_LISTEN": listens[number - 1]},
        ready_urls=[f"http://{listen}/readyz" for listen in listens],
        stop_timeout_s=settings.stop_timeout_s,
    )

    async def run() -> bool:
        supervisor = Supervisor(plan)
        until_signalled(on_signal=supervisor.stop)
        with HealthServer(settings.http_listen, ready=supervisor.ready):
            return await supervisor.run()

    with set_up("towline-worker"):
        try:
            usable = asyncio.run(run())
        except ListenError as error:
            _fail(str(error), status=_AGAIN)
    if not usable:
        raise typer.Exit(UNUSABLE)


async def _host(loaded: loader.LoadedApp, settings: WorkerSettings, *, supervised: bool) -> bool:
    """Host until told to stop; whether nothing is left that would hold the interpreter up at its end."""
    threads = ThreadPoolExecutor(thread_name_prefix="towline-io")
    loop = asyncio.get_running_loop()
    loop.set_default_executor(threads)
    try:
        clean = await _host_until_stopped(loaded, settings, supervised=supervised)
    finally:
        # A payload folder whose file server is gone holds threads in the system's calls; the loop waits for
        # all threads of its own executor when it ends, however long.
        loop.set_default_executor(ThreadPoolExecutor(1))
        left = await _shut_down(threads)
    return clean and not left


async def _shut_down(threads: ThreadPoolExecutor) -> bool:
    """Whether some of the threads are busy for longer than may be waited for."""
    loop, ended = asyncio.get_running_loop(), asyncio.Event()

    def shut_down() -> None:
        threads.shutdown(cancel_futures=True)
        with suppress(RuntimeError):  # the loop has ended before
            loop.call_soon_threadsafe(ended.set)

    threading.Thread(target=shut_down, daemon=True).start()
    with suppress(TimeoutError):
        async with asyncio.timeout(_THREADS_END_S):
            await ended.wait()
    return not ended.is_set()


async def _host_until_stopped(
    loaded: loader.LoadedApp, settings: WorkerSettings, *, supervised: bool
) -> bool:
    stop = until_signalled()
    if supervised:
        stop_with_parent(stop)
    async with AsyncExitStack() as parts:
        streams = StreamSettings()
        observers: list[StreamObserver] = []
        if streams.enabled:
            writer = TokenWriter(RedisSettings(), streams)
            writer.start()
            parts.callback(writer.stop)
            observers.append(StreamObserver(writer))
            observe_value("towline.stream.kept_chars", lambda: writer.kept_chars)
            observe_value("towline.stream.redis_away", lambda: float(writer.away))
        payload_settings = PayloadSettings()
        payloads = open_payload_store(payload_settings)
        if payloads is not None:
            await parts.enter_async_context(payloads)
        producer = EventProducer(
            KafkaSettings(),
            client_id="towline-worker",
            delivery_timeout_s=_DELIVERY_TIMEOUT_S,
            payloads=payloads,
            event_bytes=payload_settings.event_bytes,
        )
        host = Host(
            loaded,
            producer,
            settings=settings,
            scheduler=SchedulerSettings(),
            observers=observers,
            payloads=payloads,
            inline_bytes=payload_settings.inline_bytes,
        )
        parts.enter_context(HealthServer(settings.http_listen, live=host.live, ready=host.ready))
        starting = asyncio.create_task(_start(host, producer), name="worker-start")
        stopping = asyncio.create_task(stop.wait(), name="worker-stop-signal")
        try:
            await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                await starting
                await stopping
            else:
                starting.cancel()
                await asyncio.wait({starting})
        finally:
            stopping.cancel()
            clean = await host.stop()
            await producer.stop()
    return clean


async def _start(host: Host, producer: EventProducer) -> None:
    await producer.start()
    await host.start()


def _fail(message: str, *, status: int = UNUSABLE) -> NoReturn:
    typer.echo(f"towline worker: {message}", err=True)
    raise typer.Exit(status)
