"""Real child processes under a supervisor."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from tests.waiting import PATIENCE_S, eventually_async

from towline.worker import supervisor
from towline.worker.supervisor import UNUSABLE, Plan, Supervisor

# By its path: the package would import all that a worker needs, which these children don't.
LOAD = f"""
import asyncio, importlib.util, os, pathlib, signal, sys
spec = importlib.util.spec_from_file_location("supervisor", {supervisor.__file__!r})
module = sys.modules["supervisor"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
"""
WAITS = (
    LOAD
    + """
async def main():
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    module.stop_with_parent(stop)
    pathlib.Path(sys.argv[1]).write_text(str(os.getpid()))
    await stop.wait()
    pathlib.Path(sys.argv[1] + ".stopped").touch()

asyncio.run(main())
"""
)


def plan(folder: Path, code: str = WAITS, count: int = 2) -> Plan:
    return Plan(
        command=lambda number: (sys.executable, "-c", code, str(folder / str(number))),
        environment=lambda _: dict(os.environ),
        ready_urls=["http://127.0.0.1:9/readyz"] * count,
        stop_timeout_s=10.0,
        restart_after_s=(0.01, 0.05),
    )


def pid(folder: Path, number: int) -> int:
    file = folder / str(number)
    return int(file.read_text() or 0) if file.exists() else 0


def is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


@asynccontextmanager
async def running(made: Supervisor) -> AsyncGenerator[asyncio.Task[bool]]:
    task = asyncio.create_task(made.run())
    try:
        yield task
    finally:
        made.stop()
        await task


async def test_one_stop_stops_all_and_each_gets_to_its_end(tmp_path: Path) -> None:
    running_one = Supervisor(plan(tmp_path))
    async with running(running_one) as task:
        await eventually_async(lambda: bool(pid(tmp_path, 1) and pid(tmp_path, 2)))
        running_one.stop()
        assert await asyncio.wait_for(task, PATIENCE_S) is True
    assert (tmp_path / "1.stopped").exists()
    assert (tmp_path / "2.stopped").exists()


async def test_a_process_that_dies_is_started_again_and_the_other_stays(tmp_path: Path) -> None:
    async with running(Supervisor(plan(tmp_path))):
        await eventually_async(lambda: bool(pid(tmp_path, 1) and pid(tmp_path, 2)))
        first, second = pid(tmp_path, 1), pid(tmp_path, 2)
        os.kill(first, signal.SIGKILL)
        await eventually_async(lambda: pid(tmp_path, 1) not in (0, first))
        assert pid(tmp_path, 2) == second
        assert is_alive(second)


async def test_what_can_not_be_hosted_ends_all(tmp_path: Path) -> None:
    code = f"import sys\nif sys.argv[1].endswith('/1'): sys.exit({UNUSABLE})\n" + WAITS
    assert await asyncio.wait_for(Supervisor(plan(tmp_path, code)).run(), PATIENCE_S) is False


async def test_one_that_can_not_start_again_for_now_is_tried_again_and_the_other_stays(
    tmp_path: Path,
) -> None:
    # The second start of the first child finds that it can't host anything: a volume is away, say.
    code = f"""
import pathlib, sys
if sys.argv[1].endswith("/1"):
    starts = pathlib.Path(sys.argv[1] + ".starts")
    with starts.open("a") as file:
        file.write("x")
    if len(starts.read_text()) == 2:
        sys.exit({UNUSABLE})
{WAITS}"""
    async with running(Supervisor(plan(tmp_path, code))) as task:
        await eventually_async(lambda: bool(pid(tmp_path, 1) and pid(tmp_path, 2)))
        first, second = pid(tmp_path, 1), pid(tmp_path, 2)
        os.kill(first, signal.SIGKILL)
        await eventually_async(lambda: task.done() or pid(tmp_path, 1) not in (0, first))
        assert not task.done()
        assert is_alive(second)


async def test_children_stop_when_their_parent_was_killed(tmp_path: Path) -> None:
    parent = (
        LOAD
        + f"""
plan = module.Plan(
    command=lambda _: (sys.executable, "-c", {WAITS!r}, {str(tmp_path / "1")!r}),
    environment=lambda _: dict(os.environ),
    ready_urls=[""],
    stop_timeout_s=10.0,
)
asyncio.run(module.Supervisor(plan).run())
"""
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", parent)
    try:
        await eventually_async(lambda: bool(pid(tmp_path, 1)))
    finally:
        process.kill()
        await process.wait()
    await eventually_async(lambda: (tmp_path / "1.stopped").exists())


def test_a_child_that_does_not_answer_is_not_ready(tmp_path: Path) -> None:
    problem = Supervisor(plan(tmp_path)).ready()
    assert problem is not None
    assert "127.0.0.1:9" in problem


async def test_a_child_that_can_not_be_started_is_tried_again_and_the_others_go_on(tmp_path: Path) -> None:
    python = tmp_path / "python"
    usual = plan(tmp_path)

    def command(number: int) -> Sequence[str]:
        # The second one's interpreter is not there yet, as a fork may find no memory.
        return usual.command(number) if number == 1 else (str(python), *usual.command(number)[1:])

    async with running(Supervisor(replace(usual, command=command))) as task:
        await eventually_async(lambda: pid(tmp_path, 1))
        first = pid(tmp_path, 1)
        python.symlink_to(sys.executable)
        await eventually_async(lambda: task.done() or pid(tmp_path, 2))
        assert not task.done()
        assert is_alive(first)
