"""The scheduler as the bridge sees it: calls with a bound, answers as values, gRPC status as our errors."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Final, Literal, Self, TypeAlias, TypeVar, cast

import grpc
import grpc.aio
from durabletask.client import OrchestrationState, OrchestrationStatus
from durabletask.history import EventRaisedEvent, ExecutionCompletedEvent, ExecutionStartedEvent
from pydantic import JsonValue, ValidationError

from towline.bridge.clients import Clients
from towline.bridge.errors import (
    BridgeError,
    RunExistsError,
    RunUnknownError,
    SchedulerAwayError,
    SchedulerFaultError,
    SchedulerRefusedError,
)
from towline.contracts.durable import CANCELLED_ERROR_TYPE, RunEnvelope, unwrap_input
from towline.contracts.errors import PayloadTooLargeError
from towline.contracts.payloads import PayloadStore, is_reference
from towline.contracts.payloads.durable_store import SharedPayloadStore
from towline.contracts.settings import SchedulerSettings

_T = TypeVar("_T")
Phase: TypeAlias = Literal["pending", "running", "suspended", "completed", "failed", "terminated"]

_PROBE_ID: Final = "towline.bridge.probe"
_PAGE_COUNT: Final = 200
_TRANSFER_S: Final = 60.0
"""Time for a payload on its way to or from its store, in one call."""
_TOO_LARGE: Final = re.compile(r"too large|larger than|exceed|\bsize\b", re.IGNORECASE)

_PHASES: Final[dict[OrchestrationStatus, Phase]] = {
    OrchestrationStatus.PENDING: "pending",
    OrchestrationStatus.RUNNING: "running",
    OrchestrationStatus.CONTINUED_AS_NEW: "running",
    OrchestrationStatus.SUSPENDED: "suspended",
    OrchestrationStatus.COMPLETED: "completed",
    OrchestrationStatus.FAILED: "failed",
    OrchestrationStatus.TERMINATED: "terminated",
}
ENDED: Final[frozenset[Phase]] = frozenset({"completed", "failed", "terminated"})
_AWAY: Final = {
    grpc.StatusCode.UNAVAILABLE: "is not reachable",
    grpc.StatusCode.DEADLINE_EXCEEDED: "did not answer in time",
    grpc.StatusCode.CANCELLED: "broke off the call",
    grpc.StatusCode.ABORTED: "broke off the call",
    grpc.StatusCode.UNAUTHENTICATED: "does not accept our credential",
    grpc.StatusCode.PERMISSION_DENIED: "does not allow us this task hub",
}
_REFUSED: Final = frozenset(
    {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.OUT_OF_RANGE,
        grpc.StatusCode.UNIMPLEMENTED,
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """What the scheduler knows of one run."""

    run_id: str
    phase: Phase
    name: str
    created_at: datetime
    updated_at: datetime
    envelope: RunEnvelope | None = None
    """None for an instance that Towline did not start, and where the input was not asked for."""
    output: str | None = None
    """JSON text."""
    error_type: str | None = None
    error_message: str | None = None
    failed_by_server: bool = False
    """It failed without its code having raised: no worker has told of it."""

    @property
    def ended(self) -> bool:
        """Whether it will never change again."""
        return self.phase in ENDED

    @property
    def cancelled(self) -> bool:
        """Whether it ended because a cancel took effect in the run."""
        return self.phase == "failed" and (self.error_type or "").rpartition(".")[2] == CANCELLED_ERROR_TYPE


@dataclass(frozen=True, slots=True)
class Commands:
    """The commands that have reached a run, as of one moment."""

    seen: frozenset[str]
    """Ids in the history, and in the book of asks that an earlier generation carried over."""
    ended: bool
    """The run had ended by then: it will never see another."""


class Scheduler:
    """Every call is bounded by `call_timeout_s`, and a payload's transfer. To be entered before it is used.

    Args:
        settings: Where it is.
        call_timeout_s: Longest that a call may take.
        payloads: Store for large data.
        inline_bytes: Larger data goes there.
        direct: Make short calls without gRPC's core where that can be.

    Raises (all methods): `SchedulerAwayError`, `SchedulerRefusedError`, `SchedulerFaultError`; those that
    carry data also `PayloadStoreAwayError`.
    """

    def __init__(
        self,
        settings: SchedulerSettings,
        *,
        call_timeout_s: float,
        payloads: PayloadStore | None = None,
        inline_bytes: int = 262_144,
        direct: bool = True,
    ) -> None:
        self._settings = settings
        self._call_timeout_s = call_timeout_s
        self._data_timeout_s = call_timeout_s + (0 if payloads is None else _TRANSFER_S)
        store = (
            None
            if payloads is None
            else SharedPayloadStore(payloads, threshold_bytes=inline_bytes, lenient=True)
        )
        self._clients = Clients(settings, call_timeout_s=call_timeout_s, payloads=store, direct=direct)

    async def __aenter__(self) -> Self:
        await self._clients.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._clients.close()

    async def ping(self) -> None:
        """Ask for something that is not there: an answer means that the scheduler works for us."""
        await self._call(self._clients.short.get_orchestration_state(_PROBE_ID, fetch_payloads=False))

    async def start(
        self, run_type: str, run_id: str, run_input: dict[str, Any], start_at: datetime | None
    ) -> None:
        """Start an orchestration. The current trace context becomes its parent.

        Raises:
            RunExistsError: The id is taken; nothing was changed.
        """
        await self._call(
            self._clients.short.schedule_new_orchestration(
                run_type, input=run_input, instance_id=run_id, start_at=start_at
            ),
            timeout_s=self._data_timeout_s,
        )

    async def find(self, run_id: str) -> RunState | None:
        """The run, with its envelope and output."""
        state = await self._call(
            self._clients.short.get_orchestration_state(run_id, fetch_payloads=True),
            timeout_s=self._data_timeout_s,
        )
        return None if state is None else _run_state(state)

    async def wait_for_end(self, run_id: str, *, within_s: float) -> bool:
        """Whether the run ends within that time; True also if it is not there (any more)."""
        waiting = self._clients.long.wait_for_orchestration_completion(
            run_id, fetch_payloads=False, timeout=within_s
        )
        try:
            state = await self._call(waiting, timeout_s=within_s + self._call_timeout_s)
        except _WaitIsOverError:
            return False
        except RunUnknownError:
            return True
        return state is None or _PHASES[state.runtime_status] in ENDED

    async def raise_event(self, run_id: str, name: str, data: dict[str, Any]) -> None:
        """Raise an external event. On a finished run it has no effect.

        Raises:
            RunUnknownError: There is no such run.
        """
        await self._call(
            self._clients.short.raise_orchestration_event(run_id, name, data=data),
            timeout_s=self._data_timeout_s,
        )

    async def suspend(self, run_id: str, reason: str | None) -> None:
        """Suspend it; no effect if it is suspended.

        Raises:
            RunUnknownError: There is no such run.
        """
        await self._call(self._clients.short.suspend_orchestration(run_id, reason=_plain(reason)))

    async def resume(self, run_id: str, reason: str | None) -> None:
        """Resume it; no effect if it is not suspended.

        Raises:
            RunUnknownError: There is no such run.
        """
        await self._call(self._clients.short.resume_orchestration(run_id, reason=_plain(reason)))

    async def terminate(self, run_id: str, output: Any) -> None:
        """End it and its children on the server, whatever they are doing."""
        await self._call(self._clients.short.terminate_orchestration(run_id, output=output, recursive=True))

    async def commands_of(self, run_id: str) -> Commands:
        """Which commands the run has seen so far.

        Raises:
            RunUnknownError: There is no such run.
        """
        history = await self._call(
            self._clients.long.get_orchestration_history(run_id), timeout_s=self._data_timeout_s
        )
        seen: set[str] = set()
        ended = False
        for event in history:
            if isinstance(event, EventRaisedEvent):
                if command_id := _command_id(event.input):
                    seen.add(command_id)
            elif isinstance(event, ExecutionStartedEvent):
                if envelope := _envelope(event.input):
                    seen.update(_strings(envelope.carried))
            elif isinstance(event, ExecutionCompletedEvent):
                ended = True
        return Commands(frozenset(seen), ended)

    async def ended_ids(self, *, since: datetime) -> list[str]:
        """Ids of instances that failed or were terminated since then."""
        ids: list[str] = []
        token: str | None = None
        while True:
            page = await self._call(
                self._clients.short.list_instance_ids(
                    runtime_status=[OrchestrationStatus.FAILED, OrchestrationStatus.TERMINATED],
                    completed_time_from=since,
                    page_size=_PAGE_COUNT,
                    continuation_token=token,
                )
            )
            ids += page.items
            token = page.continuation_token
            if not token or not page.items:
                return ids

    async def _call(self, call: Awaitable[_T], *, timeout_s: float | None = None) -> _T:
        bound = asyncio.timeout(timeout_s or self._call_timeout_s)
        try:
            async with bound:
                return await call
        except TimeoutError as error:
            if not bound.expired():
                raise _WaitIsOverError from error
            raise SchedulerAwayError(f"the scheduler at {self._settings.address} did not answer") from error
        except asyncio.CancelledError as error:
            # The client replaces a channel that failed and closes the old one, which breaks off its calls.
            if (task := asyncio.current_task()) is not None and task.cancelling():
                raise
            raise SchedulerAwayError("the connection to the scheduler was replaced") from error
        except grpc.aio.AioRpcError as error:
            raise self._translated(error) from error
        except PayloadTooLargeError as error:
            raise SchedulerRefusedError(str(error), too_large=True) from error

    def _translated(self, error: grpc.aio.AioRpcError) -> BridgeError:
        code, details = error.code(), error.details() or ""
        if code is grpc.StatusCode.ALREADY_EXISTS:
            return RunExistsError(details)
        if code is grpc.StatusCode.NOT_FOUND:
            return RunUnknownError(details)
        if code in _REFUSED:
            return SchedulerRefusedError(details or code.name)
        if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
            if _TOO_LARGE.search(details):
                return SchedulerRefusedError(details, too_large=True)
            return SchedulerAwayError(f"the scheduler at {self._settings.address} is overloaded: {details}")
        if code in _AWAY:
            return SchedulerAwayError(f"the scheduler at {self._settings.address} {_AWAY[code]}: {details}")
        return SchedulerFaultError(f"{code.name}: {details}")


def _plain(reason: str | None) -> str | None:
    """A reason that nobody takes for a reference: it is the one text in a history that is no JSON."""
    return f"reason: {reason}" if reason is not None and is_reference(reason) else reason


class _WaitIsOverError(Exception):
    """A wait ended because its own time was up, not because the scheduler is away."""


def _run_state(state: OrchestrationState) -> RunState:
    failure = state.failure_details
    return RunState(
        run_id=state.instance_id,
        phase=_PHASES[state.runtime_status],
        name=state.name,
        created_at=state.created_at.replace(tzinfo=UTC),
        updated_at=state.last_updated_at.replace(tzinfo=UTC),
        envelope=_envelope(state.serialized_input),
        output=state.serialized_output,
        error_type=None if failure is None else failure.error_type,
        error_message=None if failure is None else failure.message,
        failed_by_server=failure is not None and not failure.stack_trace,
    )


def _envelope(serialized: str | None) -> RunEnvelope | None:
    if serialized is None:
        return None
    try:
        return unwrap_input(json.loads(serialized))[0]
    except (ValueError, ValidationError):
        return None


def _command_id(serialized: str | None) -> str | None:
    try:
        data = json.loads(serialized or "null")
    except ValueError:
        return None
    command_id = cast("dict[str, Any]", data).get("command_id") if isinstance(data, dict) else None
    return command_id if isinstance(command_id, str) else None


def _strings(value: JsonValue) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _strings(item)
