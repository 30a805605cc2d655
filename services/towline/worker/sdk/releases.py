"""Frees at once what the SDKs leave behind of a turn, without waiting for the garbage collector.

A streamed agent turn leaves two hundred objects in reference cycles and an orchestration with its agent's
batch ninety more. Nothing but the collector frees those, and it looks through all runs in hand for them: a
seventh of the worker's CPU at a thousand runs at once, in pauses of up to 200 ms. Each
of these cycles has one reference that nobody needs once the piece of work is over; it is taken out here
(docs/decisions/0012-freed-at-once.md).
"""

# pyright: reportPrivateUsage=false
# ruff: noqa: SLF001

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeAlias

from agent_framework import ResponseStream
from agent_framework_durabletask import _worker as agent_worker
from agent_framework_durabletask._entities import AgentEntity
from durabletask import task
from durabletask.worker import _RuntimeOrchestrationContext

from towline.worker.sdk.contexts import release_wait
from towline.worker.sdk.execution import agent_call, call_of

_Hook: TypeAlias = Callable[[], "Awaitable[None] | None"]
_add_hook: Final[Any] = vars(ResponseStream).get("with_cleanup_hook")


class _Once:
    """A stream's clean-up hook, which lets go of itself when it runs: telemetry's refer to their stream."""

    __slots__ = ("_hook",)

    def __init__(self, hook: _Hook) -> None:
        self._hook: _Hook | None = hook

    def __call__(self) -> Awaitable[None] | None:
        hook, self._hook = self._hook, None
        return None if hook is None else hook()


def _with_cleanup_hook(stream: Any, hook: _Hook) -> Any:
    return _add_hook(stream, _Once(hook))


class _ReleasedAgentEntity(AgentEntity):
    """An agent's entity, which the SDK makes anew for each operation: after it, it lets go of its owner."""

    def run(self, request: Any) -> Any:
        """Carry the operation out."""
        # Noted before the coroutine begins: whoever awaits it is to know whose it is.
        agent_call.set(call_of(request))
        return self._run(request)

    async def _run(self, request: Any) -> Any:
        try:
            return await super().run(request)
        finally:
            del self._state_provider


def install_releases() -> None:
    """Have streams and agents' entities freed when they are done with. Idempotent."""
    setattr(ResponseStream, "with_cleanup_hook", _with_cleanup_hook)  # noqa: B010 — a method, put in its place
    setattr(agent_worker, "AgentEntity", _ReleasedAgentEntity)  # noqa: B010 — no public name


def release_context(context: _RuntimeOrchestrationContext) -> None:
    """Take an orchestration's context apart, whose code will never run again."""
    for waits in context._pending_events.values():
        for wait in waits:
            release_wait(wait)  # its handler refers to the context too
    _release_children(getattr(context, "_previous_task", None))
    vars(context).clear()


def _release_children(waited_for: task.Task[Any] | None) -> None:
    """Tasks that are not complete refer to those that they are part of, which refer to them."""
    if waited_for is None:
        return
    waited_for._parents.clear()
    if isinstance(waited_for, task.CompositeTask):
        for part in waited_for.get_tasks():
            _release_children(part)
