"""What the machine is worth just now: the CPU time of a fixed piece of work.

Neighbours on the same cores make the same work cost more CPU time (caches, shared execution units, clock):
three to five times as much has been seen. So a figure in milliseconds says little without this one beside it.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final

from agent_framework import Agent
from benchmarks.end_to_end.job import make_agent, message

_TURNS: Final = 150
AT_REST_MS: Final = 0.33
"""As measured on the machine that the project's figures come from, with nothing else on it."""


async def turn(agent: Agent[Any]) -> None:
    """One streamed turn of the job's agent."""
    stream = agent.run(message(0, 1), stream=True)
    async for _update in stream:
        pass
    await stream.get_final_response()


async def _turns(count: int) -> None:
    agent = make_agent()
    for _ in range(count):
        await turn(agent)


def yardstick_ms() -> float:
    """CPU milliseconds of one streamed turn of the job's agent, alone in this process."""
    began = time.thread_time()
    asyncio.run(_turns(_TURNS))
    return (time.thread_time() - began) / _TURNS * 1000
