"""Calls from one event loop into another."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Generator
from contextvars import ContextVar

import pytest

from towline.worker.dispatcher.crossing import Crossing

PATIENCE_S = 60.0
variable: ContextVar[int] = ContextVar("variable")


@pytest.fixture
def other() -> Generator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield loop
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


async def test_each_of_many_calls_gets_its_own_answer(other: asyncio.AbstractEventLoop) -> None:
    crossing = Crossing(other)

    async def work(number: int) -> int:
        await asyncio.sleep(0.001 * (number % 3))
        if number == 7:
            raise LookupError("7")
        assert asyncio.get_running_loop() is other
        return number

    calls = [crossing.run(lambda number=number: work(number)) for number in range(2_000)]
    async with asyncio.timeout(PATIENCE_S):
        answers = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(answer) for answer in answers if not isinstance(answer, int)] == [LookupError]
    assert [a for a in answers if isinstance(a, int)] == [n for n in range(2_000) if n != 7]


async def test_each_call_has_the_variables_of_its_caller(other: asyncio.AbstractEventLoop) -> None:
    crossing = Crossing(other)

    async def call(number: int) -> int:
        variable.set(number)

        async def work() -> int:
            await asyncio.sleep(0)
            return variable.get()

        return await crossing.run(work)

    assert await asyncio.gather(*(call(number) for number in range(100))) == list(range(100))


async def test_cancelling_the_call_cancels_the_work(other: asyncio.AbstractEventLoop) -> None:
    crossing = Crossing(other)
    began, ended = threading.Event(), threading.Event()

    async def work() -> None:
        began.set()
        try:
            await asyncio.sleep(PATIENCE_S)
        finally:
            ended.set()

    call = asyncio.create_task(crossing.run(work))
    assert await asyncio.to_thread(began.wait, PATIENCE_S)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert await asyncio.to_thread(ended.wait, PATIENCE_S)
