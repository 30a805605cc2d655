"""The worker process: loads the app, connects, hosts it, and ends within a bound."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from durabletask.worker import ConcurrencyOptions

from towline.contracts.errors import TowlineError
from towline.contracts.payloads import PayloadStore
from towline.contracts.payloads.durable_store import SharedPayloadStore
from towline.contracts.settings import PayloadSettings, SchedulerSettings
from towline.worker import instruments, loader, sdk
from towline.worker.agents import InstrumentAgent, ObservedAgent, TurnObserver, no_instrumentation
from towline.worker.dispatcher import Dispatcher, DispatcherOptions, KeeperOptions
from towline.worker.errors import CredentialError
from towline.worker.outlet import Outlet, Publisher
from towline.worker.payloads import ItemPayloads
from towline.worker.registry import Catalog
from towline.worker.settings import WorkerSettings
from towline.worker.worker import TowlineWorker

_log = logging.getLogger(__name__)
_SDK_LOGGERS: Final = ("durabletask", "agent_framework", "agent_framework.durabletask", "azure")
_REGISTER_RETRY_S: Final = 2.0


class Host:
    """Hosts one app in this process.

    Args:
        app: What to host.
        publisher: Where events go; started, and stopped by whoever made it.
        settings: The worker's own.
        scheduler: Where the scheduler is.
        observers: Watch every agent turn. Without any, and without a callback of the app's, agents are not
            asked to stream.
        instrument_agent: Wraps every agent, inside of what the host itself wraps around it.
        payloads: Takes what is too large for a history; opened and closed by whoever made it.
        inline_bytes: What is larger goes there.
    """

    def __init__(
        self,
        app: loader.LoadedApp,
        publisher: Publisher,
        *,
        settings: WorkerSettings,
        scheduler: SchedulerSettings,
        observers: Sequence[TurnObserver] = (),
        instrument_agent: InstrumentAgent = no_instrumentation,
        payloads: PayloadStore | None = None,
        inline_bytes: int = PayloadSettings.model_fields["inline_bytes"].default,
    ) -> None:
        self._sdk_differs = sdk.check(any_version=settings.sdk_versions == "any")
        quiet_sdk_logs()
        self._app = app
        self._publisher = publisher
        self._settings = settings
        self._scheduler = scheduler
        self._observers = (instruments.TurnMetrics(), *observers)
        self._streams = bool(observers)
        self._instrument_agent = instrument_agent
        self._payloads = payloads
        self._inline_bytes = inline_bytes
        self._worker: TowlineWorker | None = None
        self._outlet: Outlet | None = None
        self._dispatcher: Dispatcher | None = None
        self._catalog: Catalog | None = None
        self._registered = False

    @property
    def catalog(self) -> Catalog:
        """What the app registered. Known once the host was started."""
        assert self._catalog is not None, "start the host first"
        return self._catalog

    async def start(self) -> None:
        """Set the app up, publish what it can run, take work.

        Waits for Kafka as long as it takes. The scheduler is waited for in the background.

        Raises:
            AppLoadError: The app can't be set up.
        """
        name = self._settings.app_name or self._app.name
        source = f"towline/worker/{name}"
        self._outlet = Outlet(self._publisher, asyncio.get_running_loop())
        self._worker = self._make_worker(self._outlet, source)
        self._catalog = loader.set_up(
            self._app,
            self._worker,
            self._instrument,
            name=name,
            version=self._settings.app_version,
        )
        self._worker.use_work_item_filters()
        await self._publish_catalog(source)
        self._take_work(self._worker, self._worker.outlet)
        _log.info(
            "worker_started",
            extra={
                "app": name,
                "scheduler": self._scheduler.address,
                "taskhub": self._scheduler.taskhub,
                "run_types": sorted(self._catalog.run_types),
            },
        )

    async def stop(self) -> bool:
        """Take no more work and let what is in hand finish, for at most `stop_timeout_s`.

        Returns:
            Whether all of it finished. If not, threads of it are still there: end the process; the
            scheduler hands the work out again.
        """
        if self._worker is None or self._outlet is None:
            return True
        worker, outlet = self._worker, self._outlet
        if self._dispatcher is not None:
            return await self._stop_dispatcher(self._dispatcher, outlet)
        began = time.monotonic()
        stopped = threading.Event()

        def stop_worker() -> None:
            worker.stop()
            stopped.set()

        threading.Thread(target=stop_worker, name="worker-stop", daemon=True).start()
        # Turns may still publish while Kafka answers; near the end of the bound they give up.
        give_up_at = began + self._settings.stop_timeout_s * 0.8
        while not stopped.is_set() and time.monotonic() < began + self._settings.stop_timeout_s:
            if time.monotonic() >= give_up_at or outlet.is_stuck:
                outlet.close()
            await asyncio.sleep(0.02)
        outlet.close()
        _log.info("worker_stopped", extra={"clean": stopped.is_set(), "took_s": time.monotonic() - began})
        return stopped.is_set()

    def _take_work(self, worker: TowlineWorker, outlet: Outlet) -> None:
        settings = self._settings
        if self._sdk_differs is not None:
            # What the dispatcher takes from the SDK's inside was read in the pinned version only.
            _log.warning("sdk_worker_used_instead", extra={"versions": self._sdk_differs})
        if self._by_sdk:
            worker.start()
            return
        options = DispatcherOptions(
            max_turns=settings.max_turns,
            max_activities=settings.max_activities,
            max_agent_turns=settings.max_agent_turns,
            threads=settings.threads,
            direct=settings.reports == "direct",
            keeper=KeeperOptions(
                replay=settings.replay,
                max_count=settings.kept_runs,
                max_bytes=settings.kept_mb * 1024 * 1024,
                max_age_s=settings.kept_s,
            ),
        )
        payloads = ItemPayloads(self._payloads, inline_bytes=self._inline_bytes)
        self._dispatcher = Dispatcher(worker, outlet, options, payloads)
        self._dispatcher.start()
        instruments.observe_host(self._dispatcher, outlet)

    @property
    def _by_sdk(self) -> bool:
        """Whether the SDK's own worker carries items out."""
        return self._settings.dispatcher == "sdk" or self._sdk_differs is not None

    async def _stop_dispatcher(self, dispatcher: Dispatcher, outlet: Outlet) -> bool:
        began = time.monotonic()
        timeout_s = self._settings.stop_timeout_s
        # Turns may still publish while Kafka answers; near the end of the bound they give up.
        giving_up = asyncio.get_running_loop().call_later(
            0 if outlet.is_stuck else timeout_s * 0.8, outlet.close
        )
        clean = await dispatcher.stop(timeout_s)
        await outlet.flush()
        giving_up.cancel()
        outlet.close()
        _log.info("worker_stopped", extra={"clean": clean, "took_s": time.monotonic() - began})
        return clean

    def live(self) -> str | None:
        """What is wrong with this process that a restart would mend, or None."""
        if self._dispatcher is not None:
            return None if self._dispatcher.is_alive else "the dispatcher has ended"
        if self._worker is not None and not sdk.is_taking_work(self._worker):
            return "the worker's loop has ended"
        return None

    def ready(self) -> str | None:
        """Why runs make no progress here now, or None."""
        if self._worker is None or not self._registered:
            return "starting"
        connected = (
            self._dispatcher.is_connected if self._dispatcher is not None else sdk.is_connected(self._worker)
        )
        if not connected:
            return f"no connection to the scheduler at {self._scheduler.address}"
        if self._outlet is not None and self._outlet.is_stuck:
            return "Kafka does not take events: turns wait"
        return None

    def _instrument(self, agent: Any, registered_name: str, *, heard: bool) -> Any:
        return ObservedAgent(
            self._instrument_agent(agent, registered_name),
            registered_name,
            self._observers,
            streams=self._streams or heard,
        )

    def _make_worker(self, outlet: Outlet, source: str) -> TowlineWorker:
        settings = self._settings
        # The dispatcher sees to payloads itself: the SDK would block its loop for them.
        payload_store = (
            SharedPayloadStore(self._payloads, threshold_bytes=self._inline_bytes)
            if self._payloads is not None and self._by_sdk
            else None
        )
        return TowlineWorker(
            outlet=outlet,
            source=source,
            host_address=self._scheduler.address,
            secure_channel=self._scheduler.address.startswith("https://"),
            taskhub=self._scheduler.taskhub,
            token_credential=credential(self._scheduler),
            logger=logging.getLogger("durabletask.worker"),
            payload_store=payload_store,
            concurrency_options=ConcurrencyOptions(
                maximum_concurrent_activity_work_items=settings.max_activities,
                maximum_concurrent_orchestration_work_items=settings.max_turns,
                maximum_concurrent_entity_work_items=settings.max_agent_turns,
                maximum_thread_pool_workers=settings.threads,
            ),
        )

    async def _publish_catalog(self, source: str) -> None:
        event = self.catalog.event(source)
        while True:
            try:
                await self._publisher.send_many((event,))
            except TowlineError as error:
                _log.warning("catalog_not_published", extra={"error": str(error)})
                await asyncio.sleep(_REGISTER_RETRY_S)
            else:
                self._registered = True
                return


def credential(settings: SchedulerSettings) -> Any:
    """What the worker shows to the scheduler: nothing, a fixed bearer token, or Entra ID."""
    if settings.credential == "none":
        return None
    if settings.credential == "token":
        if settings.token is None:
            raise CredentialError(
                "TOWLINE_SCHEDULER_CREDENTIAL is token: set TOWLINE_SCHEDULER_TOKEN or "
                "TOWLINE_SCHEDULER_TOKEN_FILE to the bearer token"
            )
        return sdk.fixed_token(settings.token.get_secret_value())
    from azure.identity import DefaultAzureCredential

    return DefaultAzureCredential()


def quiet_sdk_logs() -> None:
    """The SDKs log every step of every run at INFO: a quarter to a third of the worker's CPU."""
    for name in _SDK_LOGGERS:
        logger = logging.getLogger(name)
        if logger.level == logging.NOTSET or logger.level < logging.WARNING:
            logger.setLevel(logging.WARNING)


def until_signalled(*, on_signal: Callable[[], None] | None = None) -> asyncio.Event:
    """An event that SIGTERM or SIGINT sets. Call it on the running loop of the main thread."""
    import signal

    stop = asyncio.Event()

    def handle() -> None:
        if on_signal is not None:
            on_signal()
        stop.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, handle)
    return stop
