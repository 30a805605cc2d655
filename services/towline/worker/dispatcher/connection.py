"""The connection to the scheduler: metadata of each call, the stream of work, reports that are repeated."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from random import Random
from typing import Any, Final

import grpc
import grpc.aio

from towline.http2 import Calls, Keepalive
from towline.worker import sdk
from towline.worker.errors import HistoryMissingError

_log = logging.getLogger(__name__)

_MESSAGE_BYTES_MAX: Final = 64 * 1024 * 1024
_KEEPALIVE: Final = Keepalive(after_s=20.0, patience_s=10.0)
_CHANNEL_OPTIONS: Final = (
    ("grpc.max_receive_message_length", _MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", -1),
    ("grpc.keepalive_time_ms", int(_KEEPALIVE.after_s * 1000)),
    ("grpc.keepalive_timeout_ms", int(_KEEPALIVE.patience_s * 1000)),
    # gRPC's own reconnect backoff grows to two minutes; a restarted scheduler is back within a second.
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 2_000),
)
_HELLO_TIMEOUT_S: Final = 10.0
_CALL_TIMEOUT_S: Final = 30.0
_HISTORY_TIMEOUT_S: Final = 30.0
"""Half of a turn's lease."""
_HISTORIES_AT_ONCE: Final = 4
"""They may be large, and a worker that is back after a restart needs one for each long run."""
_TOKEN_REFRESH_S: Final = 30.0
REPORT_FOR_S: Final = 60.0
"""How long a completion is repeated; by then a turn's lease is over and it has been handed out again."""
_REPEATS_REPORTS: Final = ("x-repeats-reports", "true")
"""Tells our scheduler that a break of the connection loses no report: see `Connection.report`."""
_KEEPS_ORCHESTRATIONS: Final = ("x-keeps-orchestrations", "true")
"""Tells our scheduler to leave out of a long history what an orchestration that is kept knows."""
_COMPLETION_TOKEN: Final = "x-completion-token"  # noqa: S105
"""Has our scheduler refuse the history once the turn is somebody else's."""
_REPEATABLE: Final = frozenset(
    {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.ABORTED}
)


@dataclass(frozen=True, slots=True)
class Backoff:
    """Waits that double, with full jitter. In seconds."""

    base_s: float = 0.05
    cap_s: float = 3.0

    def delay(self, attempt: int, random: Random) -> float:
        """How long to wait before attempt number `attempt` (from 1)."""
        return random.uniform(self.base_s / 2, min(self.cap_s, self.base_s * 2 ** min(attempt, 16)))


class Connection:
    """Belongs to the loop that it was made on.

    Args:
        worker: The SDK's worker whose address, hub and credential are used.
        direct: Do without gRPC's core where the scheduler speaks plain text.
    """

    def __init__(self, worker: sdk.Worker, *, direct: bool = True) -> None:
        self._worker = worker
        address = sdk.plain_address(worker) if direct else None
        # One of the two.
        self._calls: Calls | None = None
        self._channel: grpc.aio.Channel | None = None
        if address is None:
            self._channel = sdk.async_channel(worker, _CHANNEL_OPTIONS)
            self._stub = sdk.stub(self._channel)
        else:
            self._calls = Calls(*address, answer_bytes_max=_MESSAGE_BYTES_MAX, keepalive=_KEEPALIVE)
        self._metadata: tuple[tuple[str, str], ...] = ()
        self._histories = asyncio.Semaphore(_HISTORIES_AT_ONCE)
        self._refresh: asyncio.Task[None] | None = None
        self._random = Random()  # noqa: S311 — jitter
        self._backoff = Backoff()

    async def open(self) -> None:
        """Greet the scheduler.

        Raises:
            grpc.aio.AioRpcError: It does not answer, or refuses.
            Exception: Whatever a credential raises that gives no token just now.
        """
        await self._refresh_metadata()
        if self._refresh is None:
            self._refresh = asyncio.create_task(self._keep_fresh(), name="worker-token-refresh")
        await self.call("Hello", sdk.hello(), timeout_s=_HELLO_TIMEOUT_S)

    def work_items(self, request: Any, *, keeps_orchestrations: bool) -> Any:
        """The stream of work items: a `ServerStream`, or what `grpc.aio` has for one."""
        metadata = (*self._metadata, _REPEATS_REPORTS)
        if keeps_orchestrations:
            metadata = (*metadata, _KEEPS_ORCHESTRATIONS)
        if self._calls is not None:
            return self._calls.stream(
                sdk.method_path("GetWorkItems"),
                request.SerializeToString(),
                decode=sdk.read_work_item,
                metadata=metadata,
            )
        return self._stub.GetWorkItems(request, metadata=metadata)

    async def fetch_history(self, request: Any, token: str) -> None:
        """Complete a turn's `request` whose work item, which has this `token`, has not all of the history.

        Raises:
            HistoryMissingError: The scheduler is away, or has given the turn to somebody else.
        """
        async with self._histories:
            chunks = await self._history_chunks(sdk.history_request(request), token)
        sdk.complete_history(request, (event for chunk in chunks for event in chunk.events))

    async def _history_chunks(self, wanted: Any, token: str) -> list[Any]:
        metadata = (*self._metadata, (_COMPLETION_TOKEN, token))
        stream: Any = (
            self._stub.StreamInstanceHistory(wanted, metadata=metadata)
            if self._calls is None
            else self._calls.stream(
                sdk.method_path("StreamInstanceHistory"),
                wanted.SerializeToString(),
                decode=sdk.read_history_chunk,
                metadata=metadata,
            )
        )
        try:
            async with asyncio.timeout(_HISTORY_TIMEOUT_S):
                return [chunk async for chunk in stream]
        except grpc.aio.AioRpcError as error:
            raise HistoryMissingError(f"{error.code().name}: {error.details()}") from error
        except TimeoutError as error:
            raise HistoryMissingError(f"no history within {_HISTORY_TIMEOUT_S:.0f} s") from error
        finally:
            stream.cancel()

    async def report(self, method: str, message: Any) -> bool:
        """Report what became of a work item, again and again until the scheduler has it.

        The scheduler fences by token, so a report that arrives twice changes nothing.

        Returns:
            Whether it was taken. If not, the item's lease runs out and it is handed out again.
        """
        loop = asyncio.get_running_loop()
        give_up_at, attempt = loop.time() + REPORT_FOR_S, 0
        while True:
            try:
                await self.call(method, message)
            except grpc.aio.AioRpcError as error:
                attempt += 1
                if error.code() not in _REPEATABLE or loop.time() > give_up_at:
                    _log.warning(
                        "report_failed",
                        extra={"method": method, "code": error.code().name, "error": error.details()},
                    )
                    return False
                await asyncio.sleep(self._backoff.delay(attempt, self._random))
            else:
                return True

    async def call(self, method: str, message: Any, *, timeout_s: float = _CALL_TIMEOUT_S) -> None:
        """One unary call.

        Raises:
            grpc.aio.AioRpcError: As the scheduler answers.
        """
        if self._calls is not None:
            await self._calls.call(
                sdk.method_path(method),
                message.SerializeToString(),
                timeout_s=timeout_s,
                metadata=self._metadata,
            )
            return
        rpc: Callable[..., Awaitable[Any]] = getattr(self._stub, method)
        await rpc(message, timeout=timeout_s, metadata=self._metadata)

    async def close(self) -> None:
        """Close it; calls that are open fail."""
        if self._refresh is not None:
            self._refresh.cancel()
        if self._calls is not None:
            self._calls.close()
        if self._channel is not None:
            await self._channel.close()

    async def _keep_fresh(self) -> None:
        while True:
            await asyncio.sleep(_TOKEN_REFRESH_S)
            try:
                await self._refresh_metadata()
            except Exception:  # noqa: BLE001 — the old token may be good for a while yet
                _log.warning("token_not_refreshed", exc_info=True)

    async def _refresh_metadata(self) -> None:
        # A credential may go to the network, and the SDK's worker has the synchronous one.
        self._metadata = await asyncio.to_thread(sdk.call_metadata, self._worker)
