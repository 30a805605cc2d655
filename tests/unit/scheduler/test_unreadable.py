"""What cannot be read from the file holds up itself, and nothing else."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Generator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.unit.scheduler.test_store import answer, attached, given, open_runtime, raise_event, raised, start
from tests.waiting import eventually_async

from towline.scheduler.server.runtime import Runtime


@pytest.fixture
async def opened(tmp_path: Path) -> AsyncIterator[tuple[Runtime, sqlite3.Connection]]:
    runtime, writer = open_runtime(tmp_path)
    yield runtime, writer
    runtime.close()
    writer.close()


@contextmanager
def unreadable(writer: sqlite3.Connection, table: str) -> Generator[None]:
    writer.execute(f"ALTER TABLE {table} RENAME TO away")
    yield
    writer.execute(f"ALTER TABLE away RENAME TO {table}")


async def test_a_run_whose_history_cannot_be_read_goes_on_when_it_can_and_holds_up_no_other(
    opened: tuple[Runtime, sqlite3.Connection], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stayed with the worker that was to have it, under a turn that nobody had, until a restart."""
    runtime, writer = opened
    monkeypatch.setattr("towline.scheduler.server.handouts._READ_AGAIN_S", 0.05)
    stream = attached(runtime)
    await start(runtime, "run")
    (first,) = given(runtime, stream)
    answer(runtime, first)
    await start(runtime, "other")
    await raise_event(runtime, "go on")
    run = runtime.world.instance(runtime.hub("h"), "run")
    assert run is not None
    run.chunks = None  # it is not in memory any more

    with unreadable(writer, "history"):
        (item,) = given(runtime, stream)
    assert item.orchestratorRequest.instanceId == "other"
    await eventually_async(lambda: stream.pending, "it is offered again")

    (second,) = given(runtime, stream)
    assert raised(second) == ["go on"]
    assert runtime.dispatcher.waiting == [0, 0, 0]
