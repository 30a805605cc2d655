"""Runs the SDK's synchronous entity batch on an event loop, without a thread.

The batch runs in a greenlet. Where an agent entity would block its thread until the agent's coroutine is
done, the greenlet steps aside and the coroutine is awaited by the loop; then the batch goes on with its
result. So the SDK's own code for batches, state and rollback is used as it is, and thousands of slow
agents need no threads.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, Generic, TypeVar, cast

from greenlet import getcurrent, greenlet

from towline.worker.errors import AgentStoppedError, AgentTurnCancelledError
from towline.worker.sdk import AgentCall, agent_call
from towline.worker.stops import told

T = TypeVar("T")


class _Batch(greenlet):
    """A greenlet that may step aside to have a coroutine awaited."""

    def wait_for(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Called inside of the greenlet: have `work` awaited, in the context of the caller."""
        assert self.parent is not None
        return self.parent.switch((work, contextvars.copy_context()))


class Waits(Generic[T]):
    """One synchronous call whose inner waits are awaited by the running loop.

    Args:
        call: The synchronous call. Where it calls `wait_in_greenlet`, the loop takes over.
    """

    def __init__(self, call: Callable[[], T]) -> None:
        self._call = call
        self._inner: asyncio.Task[Any] | None = None
        self._awaited: AgentCall | None = None
        self._cancelled: dict[AgentCall, str] = {}

    def cancel(self, calls: Iterable[AgentCall], reason: str) -> None:
        """Cancel the coroutines of these agent calls; the batch gets `AgentTurnCancelledError` for each.

        Others of the same batch belong to other runs, or to what the run does after its cancel. Called on
        the loop that runs the batch.
        """
        self._cancelled.update(dict.fromkeys(calls, reason))
        if self._inner is not None and self._awaited in self._cancelled:
            self._inner.cancel()

    async def run(self) -> T:
        """Make the call; await what it waits for.

        Raises:
            asyncio.CancelledError: This coroutine was cancelled; the call is left where it stands.
            Exception: Whatever the call raises.
        """
        result: list[T] = []
        batch = _Batch(lambda: result.append(self._call()))
        batch.gr_context = contextvars.copy_context()
        asked = batch.switch()
        while not batch.dead:
            work, context = cast("tuple[Coroutine[Any, Any, Any], contextvars.Context]", asked)
            asked = await self._resume(batch, work, context)
        return result[0]

    async def _resume(
        self, batch: _Batch, work: Coroutine[Any, Any, Any], context: contextvars.Context
    ) -> object:
        self._awaited = call = context.get(agent_call)
        if call in self._cancelled:
            work.close()
            return batch.throw(AgentTurnCancelledError(self._cancelled[call]))
        self._inner = asyncio.get_running_loop().create_task(told(work), context=context)
        try:
            value = await self._inner
        except asyncio.CancelledError:
            if call in self._cancelled:
                return batch.throw(AgentTurnCancelledError(self._cancelled[call]))
            this = asyncio.current_task()
            if this is None or this.cancelling():
                self._inner.cancel()
                raise
            return batch.throw(AgentStoppedError("the agent's code cancelled the task that it runs in"))
        except Exception as error:  # noqa: BLE001 — it belongs to the call, which gets it here
            return batch.throw(error)
        finally:
            self._inner = None
        return batch.switch(value)


def wait_in_greenlet(
    work: Coroutine[Any, Any, Any], otherwise: Callable[[Coroutine[Any, Any, Any]], Any]
) -> Any:
    """Wait for `work` from synchronous code: by stepping aside inside of `Waits`, else by `otherwise`."""
    current = getcurrent()
    return current.wait_for(work) if isinstance(current, _Batch) else otherwise(work)
