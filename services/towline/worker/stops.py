"""What an agent's code does to the task and the loop that it runs on, and may not."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Generator
from contextlib import contextmanager
from typing import Any, TypeVar

from towline.worker.errors import AgentStoppedError

T = TypeVar("T")


@contextmanager
def stops_told() -> Generator[None]:
    """Turn what would end more than the agent's turn into an error of that turn.

    SystemExit (an agent that parses arguments, say) and a BaseExceptionGroup (of what a client runs at once)
    would end the batch that the turn is in. A CancelledError that nobody asked for (a broken cancel scope of
    a client) passes for a cancel of the turn, and nobody answers for it.

    Raises:
        AgentStoppedError: In the place of these. Other errors, and real cancels, pass.
    """
    try:
        yield
    except (Exception, GeneratorExit):
        raise
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise AgentStoppedError("the agent's code raised CancelledError, and nobody cancelled it") from error
    except BaseException as error:
        raise AgentStoppedError(f"the agent's code raised {type(error).__name__}: {error}") from error


async def told(work: Coroutine[Any, Any, T]) -> T:
    """`work`, whose stops are told as errors."""
    with stops_told():
        return await work
