"""The one loop of all agents, whoever started it."""

from __future__ import annotations

import asyncio
import threading

import pytest
from agent_framework_durabletask import (
    _async_bridge,  # pyright: ignore[reportPrivateUsage]
)

from towline.worker import sdk


async def thread_name() -> str:
    return threading.current_thread().name


async def exits() -> None:
    raise SystemExit(2)


async def awaits_what_exits() -> str:
    with pytest.raises(SystemExit):
        await asyncio.create_task(exits())
    return "told"


def test_a_loop_that_the_sdk_has_started_goes_on_as_one_that_no_task_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_async_bridge, "_loop", None)
    monkeypatch.setattr(_async_bridge, "_thread", None)
    run = _async_bridge.run_agent_coroutine
    before = run(thread_name())
    of_the_sdk = _async_bridge._ensure_loop()  # pyright: ignore[reportPrivateUsage]
    assert sdk.agent_loop() is of_the_sdk
    assert sdk.agent_loop() is of_the_sdk
    assert run(thread_name()) != before
    assert run(awaits_what_exits()) == "told"
    assert run(thread_name()) == "agent-loop"
