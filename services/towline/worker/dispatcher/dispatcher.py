"""Takes work items from the scheduler's stream, has them carried out, reports them."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Any, Final

import grpc
import grpc.aio

from towline.telemetry.runs import bind
from towline.worker import instruments, sdk
from towline.worker.dispatcher.connection import Backoff, Connection
from towline.worker.dispatcher.crossing import Crossing
from towline.worker.dispatcher.greenlets import Waits, wait_in_greenlet
from towline.worker.dispatcher.keeper import Keeper, KeeperOptions
from towline.worker.errors import HistoryMissingError, TurnAbandonedError
from towline.worker.payloads import LOST, TURN_PATIENCE_S, ItemPayloads
from towline.worker.turn import RaiseOn, Turn

if TYPE_CHECKING:
    from towline.worker.outlet import Outlet
    from towline.worker.worker import TowlineWorker

_log = logging.getLogger(__name__)

_SILENT_FOR_S: Final = 120.0
"""A stream without any message (the scheduler pings every half minute) for this long is dead."""
_WATCH_EVERY_S: Final = 5.0
_SLOW_TURN_S: Final = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DispatcherOptions:
    """Limits; the scheduler is told of the first three and keeps to them."""

    max_turns: int = 128
    """Orchestration turns in hand at once."""
    max_activities: int = 512
    """Activities in hand at once."""
    max_agent_turns: int = 2_000
    """Agent and other entity batches in hand at once."""
    threads: int = 64
    """Threads for activities and entities that are no agents."""
    direct: bool = True
    """Speak to the scheduler without gRPC's core, if it speaks plain text."""
    keeper: KeeperOptions = field(default_factory=KeeperOptions)
    """Which orchestrations are kept between their turns."""


class Dispatcher:
    """Runs on the host's event loop.

    Args:
        worker: Registrations and executors.
        outlet: Sends what turns say. Belongs to the same loop.
        options: Limits.
        payloads: Large payloads of items.
    """

    def __init__(
        self,
        worker: TowlineWorker,
        outlet: Outlet,
        options: DispatcherOptions,
        payloads: ItemPayloads | None = None,
    ) -> None:
        self._payloads = payloads or ItemPayloads(None, inline_bytes=0)
        self._worker = worker
        self._outlet = outlet
        self._options = options
        self._threads = ThreadPoolExecutor(options.threads, thread_name_prefix="towline-item")
        self._agents = sdk.agent_loop()
        self._keeper = Keeper(worker, options.keeper)
        self._items: set[asyncio.Task[None]] = set()
        self.taken: Counter[str] = Counter()
        """Work items that came, by kind."""
        self._batches: dict[str, asyncio.Task[None]] = {}
        self._agent_turns: dict[str, set[Waits[Any]]] = {}
        self._crossing: Crossing | None = None
        self._connection: Connection | None = None
        self._main: asyncio.Task[None] | None = None
        self._stopping = False
        self._connected = False
        self._last_message = 0.0
        self._random = Random()  # noqa: S311 — jitter
        self._backoff = Backoff()

    @property
    def is_connected(self) -> bool:
        """Whether there is a stream of work items."""
        return self._connected

    @property
    def is_alive(self) -> bool:
        """Whether the dispatcher's own task runs (or was never started)."""
        return self._main is None or not self._main.done()

    @property
    def turns(self) -> Counter[str]:
        """Turns by how they were carried out, see `Keeper.turns`."""
        return self._keeper.turns

    @property
    def in_hand(self) -> int:
        """Work items that are being carried out or reported."""
        return len(self._items)

    def start(self) -> None:
        """Begin to take work; the scheduler is waited for as long as it takes."""
        sdk.prepare(self._worker)
        sdk.install_agent_wait(wait_in_greenlet)
        sdk.install_fast_times()
        sdk.install_releases()
        self._crossing = Crossing(self._agents)
        self._main = asyncio.create_task(self._run(), name="worker-dispatcher")

    async def stop(self, timeout_s: float) -> bool:
        """Take no more work, let what is in hand finish and be reported, leave the rest.

        Returns:
            Whether all of it finished within `timeout_s`. What did not is handed out again by the scheduler.
        """
        self._stopping = True
        if self._main is not None:
            self._main.cancel()
            await asyncio.wait({self._main})
        left: set[asyncio.Task[None]] = set()
        if self._items:
            _, left = await asyncio.wait(set(self._items), timeout=timeout_s)
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left, timeout=1.0)
        if self._connection is not None:
            await self._connection.close()
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._keeper.close()
        return not left

    def cancel_agent_turns(self, run_id: str, numbers: Iterable[str], reason: str) -> None:
        """Cancel the model calls of `run_id` with these numbers that are in flight here."""
        calls = [(run_id, number) for number in numbers]
        for waits in list(self._agent_turns.get(run_id, ())):
            self._agents.call_soon_threadsafe(waits.cancel, calls, reason)

    # The stream.

    async def _run(self) -> None:
        attempt = 0
        while not self._stopping:
            try:
                connection = self._connection or Connection(self._worker, direct=self._options.direct)
                self._connection = connection
                await connection.open()
                attempt = 0
                await self._read(connection)
                reason = "the scheduler ended the stream"
            except grpc.aio.AioRpcError as error:
                reason = f"{error.code().name}: {error.details()}"
            except asyncio.CancelledError:
                # What the reader of gRPC's own stream gets too when the watch cancels it.
                if self._stopping or ((task := asyncio.current_task()) is not None and task.cancelling()):
                    raise
                reason = "the stream was cancelled"
            except Exception as error:  # noqa: BLE001 — the root of this task
                # The credential goes to the network too, by libraries with errors of their own.
                reason = f"{type(error).__name__}: {error}"
                _log.debug("scheduler_connection_failed", exc_info=True)
            finally:
                self._connected = False
            attempt += 1
            delay_s = self._backoff.delay(attempt, self._random)
            _log.warning("scheduler_away", extra={"reason": reason, "attempt": attempt, "retry_s": delay_s})
            await asyncio.sleep(delay_s)

    async def _read(self, connection: Connection) -> None:
        stream = connection.work_items(
            sdk.work_items_request(
                self._worker, self._options.max_agent_turns, large_payloads=self._payloads.enabled
            ),
            keeps_orchestrations=self._options.keeper.replay != "always",
        )
        loop = asyncio.get_running_loop()
        self._last_message = loop.time()
        watch = asyncio.create_task(self._watch(stream), name="worker-stream-watch")
        try:
            # The stream is open when the scheduler has sent its headers, before the first item.
            await stream.initial_metadata()
            self._connected = True
            async for item in stream:
                self._last_message = loop.time()
                self._take(item, connection)
        finally:
            watch.cancel()
            stream.cancel()

    async def _watch(self, stream: Any) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(_WATCH_EVERY_S)
            self._keeper.expire(loop.time())
            if loop.time() - self._last_message > _SILENT_FOR_S:
                _log.warning("stream_silent", extra={"silent_s": _SILENT_FOR_S})
                stream.cancel()
                return

    def _take(self, item: Any, connection: Connection) -> None:
        kind = item.WhichOneof("request")
        token = item.completionToken
        match kind:
            case "orchestratorRequest":
                self.taken["turn"] += 1
                self._spawn(self._turn(item.orchestratorRequest, token, connection))
            case "activityRequest":
                self.taken["activity"] += 1
                self._spawn(self._activity(item.activityRequest, token, connection))
            case "entityRequest" | "entityRequestV2":
                self.taken["entity"] += 1
                request = getattr(item, kind)
                previous = self._batches.get(request.instanceId)
                task = self._spawn(self._batch(request, token, connection, previous))
                self._batches[request.instanceId] = task
            case "healthPing":
                pass
            case _:
                _log.warning("work_item_unknown", extra={"kind": kind})

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._items.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._items.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            # Nothing is reported: the item's lease runs out, and it is handed out again.
            _log.error("work_item_failed", exc_info=error)

    # The items.

    async def _turn(self, request: Any, token: str, connection: Connection) -> None:
        loop = asyncio.get_running_loop()
        worker, keeper = self._worker, self._keeper
        try:
            if request.requiresHistoryStreaming and not keeper.goes_on(request):
                await connection.fetch_history(request, token)
            turn, carried, took_s = await self._carried_out(request, token)
        except HistoryMissingError as error:
            _log.warning("turn_given_back", extra={"instance_id": request.instanceId, "reason": str(error)})
            given_back = sdk.abandoned_turn(token)
            await connection.report(given_back.method, given_back.message)
            return
        except TurnAbandonedError as abandoned:
            self._abandoned(request, abandoned)
            return
        answer = carried.answer
        if took_s > _SLOW_TURN_S:
            _log.warning(
                "turn_slow",
                extra={
                    "instance_id": request.instanceId,
                    "took_s": took_s,
                    "advice": "no blocking calls in orchestrations",
                },
            )
        run = turn.run
        if run is not None:
            bind(run.ref, calls_out=False)
            if turn.cancelled_calls and run.cancel is not None:
                # Not what the run calls from now on, to compensate.
                reason = run.cancel.reason or "the run was cancelled"
                self.cancel_agent_turns(run.envelope.run_id, turn.cancelled_calls, reason)
        # What is not kept in the end is closed: only what the scheduler has accepted may be gone on with.
        accepted = False
        try:
            await self._payloads.keep(answer.message, patience_s=TURN_PATIENCE_S)
            if not (sdk.is_followed(answer.message) and self._outlet.put_off(turn)):
                await self._outlet.deliver(turn, lambda said: self._raise_event(connection, said))
            said_at = worker.now()
            # Before the report: the next turn may be here before its answer is.
            keeper.keep(request, carried, loop.time())
            accepted = await connection.report(answer.method, answer.message)
            if accepted:  # else it goes out again and is counted then
                instruments.record(turn, now=said_at)
        except TurnAbandonedError as abandoned:
            self._abandoned(request, abandoned)
        finally:
            if not accepted:
                keeper.drop(request.instanceId, carried)

    async def _carried_out(self, request: Any, token: str) -> tuple[Turn, sdk.Carried, float]:
        """The turn, what came of it, and how many seconds its code took."""
        turn = self._worker.begin_turn(request)
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            await self._payloads.fetch(request, patience_s=TURN_PATIENCE_S)
            began = loop.time()
            carried = self._keeper.carry_out(turn, request, token, check=self._payloads.check)
        except LOST as error:
            carried = self._keeper.fail(turn, request, token, error)
        return turn, carried, loop.time() - began

    def _abandoned(self, request: Any, abandoned: TurnAbandonedError) -> None:
        _log.info("turn_abandoned", extra={"instance_id": request.instanceId, "reason": str(abandoned)})

    async def _raise_event(self, connection: Connection, said: RaiseOn) -> None:
        request = sdk.raise_event_request(said.instance_id, said.name, said.data)
        # A decision that is handed on to a child may have come by the store.
        await self._payloads.keep(request, patience_s=TURN_PATIENCE_S)
        try:
            await connection.call("RaiseEvent", request)
        except grpc.aio.AioRpcError as error:
            if error.code() != grpc.StatusCode.NOT_FOUND:
                raise TurnAbandonedError(
                    f"{said.instance_id}: {error.code().name}: {error.details()}"
                ) from error
            # The other one has ended and was purged: nobody is there to be told.
            _log.info("event_target_gone", extra={"instance_id": said.instance_id, "event_name": said.name})

    async def _activity(self, request: Any, token: str, connection: Connection) -> None:
        instruments.bind_activity(request)
        execute = partial(sdk.execute_activity, self._worker, request, token)
        try:
            await self._payloads.fetch(request)
            answer = await asyncio.get_running_loop().run_in_executor(
                self._threads, partial(contextvars.copy_context().run, execute)
            )
            await self._payloads.keep(answer.message)
        except LOST as error:
            answer = sdk.failed_activity(request, token, error)
        await connection.report(answer.method, answer.message)

    async def _batch(
        self, request: Any, token: str, connection: Connection, previous: asyncio.Task[None] | None
    ) -> None:
        instance_id = request.instanceId
        try:
            if previous is not None and not previous.done():
                # A batch that was handed out again while we still have it: never two of one entity at once.
                await asyncio.wait({previous})
            try:
                await self._payloads.fetch(request)
                answer = await self._execute_batch(request, token)
                await self._payloads.keep(answer.message)
            except LOST as error:
                answer = sdk.failed_batch(request, token, error)
            await connection.report(answer.method, answer.message)
        finally:
            if self._batches.get(instance_id) is asyncio.current_task():
                del self._batches[instance_id]

    async def _execute_batch(self, request: Any, token: str) -> sdk.Answer:
        execute = partial(sdk.execute_entity_batch, self._worker, request, token)
        if sdk.is_agent_entity(self._worker, request.instanceId):
            return await self._agent_batch(request, execute)
        return await asyncio.get_running_loop().run_in_executor(self._threads, execute)

    async def _agent_batch(self, request: Any, execute: Callable[[], sdk.Answer]) -> sdk.Answer:
        assert self._crossing is not None, "start the dispatcher first"
        waits = Waits(execute)
        run_ids = sdk.batch_run_ids(request)
        for run_id in run_ids:
            self._agent_turns.setdefault(run_id, set()).add(waits)
        try:
            return await self._crossing.run(waits.run)
        finally:
            for run_id in run_ids:
                self._agent_turns[run_id].discard(waits)
                if not self._agent_turns[run_id]:
                    del self._agent_turns[run_id]
