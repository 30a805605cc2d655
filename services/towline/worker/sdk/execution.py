"""Carrying out work items by the SDK's own executors, for another dispatcher than the SDK's."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import durabletask.internal.orchestrator_service_pb2 as pb
from agent_framework_durabletask import (
    _async_bridge,  # pyright: ignore[reportPrivateUsage]
)
from agent_framework_durabletask import _worker as agent_worker  # pyright: ignore[reportPrivateUsage]
from agent_framework_durabletask._async_bridge import run_agent_coroutine
from agent_framework_durabletask._entities import DurableTaskEntityStateProvider
from durabletask.azuremanaged.worker import DurableTaskSchedulerWorker
from durabletask.entities import EntityInstanceId
from durabletask.internal import helpers

from towline.worker.stops import told

_log = logging.getLogger(__name__)

RUN_OPTION: Final = "towline"
"""Option of an agent call under which the host sends along which run and turn it belongs to."""

_AGENT_THREAD: Final = "agent-loop"

Worker = DurableTaskSchedulerWorker

AgentCall: TypeAlias = tuple[str, str]
"""The run, and the number of the call in it."""
agent_call: ContextVar[AgentCall | None] = ContextVar("towline_agent_call", default=None)
"""The call that an agent's entity works at, in the context that its coroutine gets."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the SDK's executor wants to be told to the scheduler: a method of the service and its message."""

    method: str
    message: Any


class _Answering:
    """Stands in for the scheduler's stub: keeps the one call that an executor makes."""

    def __init__(self) -> None:
        self.answer: Answer | None = None

    def __getattr__(self, method: str) -> Callable[[Any], None]:
        def keep(message: Any) -> None:
            self.answer = Answer(method, message)

        return keep

    def taken(self) -> Answer:
        assert self.answer is not None, "the executor answered nothing"
        return self.answer


def execute_activity(worker: Worker, request: Any, token: str) -> Answer:
    """One activity, by the SDK's executor. Blocks as long as it takes."""
    stub = _Answering()
    worker._execute_activity(request, stub, token)  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
    return stub.taken()


def execute_entity_batch(worker: Worker, request: Any, token: str) -> Answer:
    """One entity batch, by the SDK's executor. Blocks as long as it takes."""
    stub = _Answering()
    worker._execute_entity_batch(request, stub, token)  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
    return stub.taken()


def is_agent_entity(worker: Worker, instance_id: str) -> bool:
    """Whether ``@name@key`` is an agent, whose coroutines the SDK would block a thread for."""
    entity = worker._registry.get_entity(EntityInstanceId.parse(instance_id).entity)  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
    return isinstance(entity, type) and issubclass(entity, DurableTaskEntityStateProvider)


def batch_run_ids(request: Any) -> set[str]:
    """The runs on whose behalf an agent's batch works, as far as its operations tell."""
    if isinstance(request, pb.EntityRequest):
        request, _ = helpers.convert_to_entity_batch_request(request)
    runs: set[str] = set()
    for operation in request.operations:
        try:
            call = call_of(json.loads(operation.input.value))
        except (ValueError, RecursionError):
            continue
        if call is not None:
            runs.add(call[0])
    return runs


def call_of(request: Any) -> AgentCall | None:
    """Which call of which run an agent's entity is asked for; None if no run asks."""
    try:
        about = request["options"][RUN_OPTION]
        return str(about["run_id"]), str(about["turn"])
    except (TypeError, KeyError):
        return None


def agent_loop() -> asyncio.AbstractEventLoop:
    """The one loop on which all agents of this process run: clients and credentials are bound to it.

    Unlike the SDK's own it goes on when a task on it raises SystemExit. Each call of a tool is a task of its
    own, and so is what an agent's code gathers: no handler around the agent's turn is asked.
    """
    bridge: Any = _async_bridge
    with bridge._lock:  # noqa: SLF001
        loop: asyncio.AbstractEventLoop = bridge._loop  # noqa: SLF001
        thread: threading.Thread | None = bridge._thread  # noqa: SLF001
        if thread is None or not thread.is_alive():
            loop = asyncio.new_event_loop()
        elif thread.name == _AGENT_THREAD:
            return loop
        else:
            # The SDK's own is there already, and clients may be bound to its loop: that goes on here.
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
        thread = threading.Thread(target=_run_lastingly, args=(loop,), name=_AGENT_THREAD, daemon=True)
        thread.start()
        bridge._loop, bridge._thread = loop, thread  # noqa: SLF001
        return loop


def _run_lastingly(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    while True:
        try:
            loop.run_forever()
        except (SystemExit, KeyboardInterrupt):
            # Its task has ended by it, and tells whoever awaits it; the others are where they were.
            _log.exception("agent_task_exited")
        else:
            return


def install_agent_wait(wait: Callable[[Any, Callable[[Any], Any]], Any]) -> None:
    """Let agent entities wait for their coroutines by `wait`, which falls back to blocking the thread."""

    def run_agent_coroutine(work: Any) -> Any:
        return wait(work, _async_bridge.run_agent_coroutine)

    setattr(agent_worker, "run_agent_coroutine", run_agent_coroutine)  # noqa: B010 — no public name


def run_on_agent_loop(work: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine on the loop that agents run on, from another thread, and wait for it.

    Clients that agents and activities share are bound to one loop.
    """
    return run_agent_coroutine(told(work))
