"""What the supervisor does when something that nobody foresaw goes wrong."""

from __future__ import annotations

import asyncio
import errno
import sys
from collections.abc import Container, Mapping, Sequence
from pathlib import Path

import pytest
from tests.waiting import eventually_async

from towline.dev.errors import DevError, WrongSettingError
from towline.dev.part import Part
from towline.dev.stack import Stack, StackPlan
from towline.dev.supervisor import Supervisor

PATIENCE_S = 30.0


class Sleeper(Part):
    """A program that is ready as soon as it runs."""

    def __init__(self, data: Path) -> None:
        super().__init__("sleeper", data=data / "sleeper")

    @property
    def addresses(self) -> Mapping[str, str]:
        return {}

    def command(self) -> Sequence[str]:
        return [sys.executable, "-c", "import time; time.sleep(600)"]

    def probe(self) -> bool:
        return self.is_running


def plan(data: Path, **settings: str) -> StackPlan:
    given = {
        "TOWLINE_KAFKA_BOOTSTRAP": "127.0.0.1:1",
        "TOWLINE_REDIS_URL": "redis://127.0.0.1:1/0",
        "TOWLINE_SCHEDULER_ADDRESS": "http://127.0.0.1:1",
    }
    return StackPlan(data=data, app="none:none", given=given, settings=settings, roles=())


def test_a_setting_that_kafka_cannot_be_reached_with_is_named_before_anything_is_started(
    tmp_path: Path,
) -> None:
    with pytest.raises(
        WrongSettingError, match=r"^KafkaSettings.*sasl_username is needed.*towline settings"
    ) as caught:
        Stack(
            plan(tmp_path, TOWLINE_KAFKA_SECURITY_PROTOCOL="SASL_SSL", TOWLINE_KAFKA_SASL_PASSWORD="hunter2")
        )
    assert "\n" not in str(caught.value)
    assert "hunter2" not in str(caught.value)


class OnFullDisk(Sleeper):
    """A part whose configuration cannot be written at some of its starts."""

    def __init__(self, data: Path, fails: Container[int]) -> None:
        super().__init__(data)
        self.starts = 0
        self._fails = fails

    def command(self) -> Sequence[str]:
        self.starts += 1
        if self.starts in self._fails:
            raise OSError(errno.ENOSPC, "No space left on device", str(self.data / "server.properties"))
        return super().command()


class WithTopics(Stack):
    """A stack whose topics are there."""

    async def create_topics(self) -> None:
        return


async def test_a_part_that_a_full_disk_keeps_from_starting_again_is_tried_until_there_is_room(
    tmp_path: Path,
) -> None:
    stack = WithTopics(plan(tmp_path))
    part, other = OnFullDisk(tmp_path, fails={2, 3}), Sleeper(tmp_path / "other")
    stack.infrastructure = [part, other]
    said: list[str] = []
    supervisor = Supervisor(stack, say=said.append, on_ready=lambda: None)
    running = asyncio.create_task(supervisor.run())
    try:
        await eventually_async(lambda: any("is ready" in line for line in said) and part.is_running)
        pid = other.pid
        part.kill_now()
        await eventually_async(lambda: running.done() or (part.starts == 4 and part.is_running))
        assert not running.done(), said
        assert other.pid == pid
        assert any("No space left on device" in line and "server.properties" in line for line in said)
    finally:
        supervisor.stop()
        await asyncio.wait_for(running, PATIENCE_S)


async def test_a_part_that_a_full_disk_never_lets_start_ends_the_stack_with_the_reason(
    tmp_path: Path,
) -> None:
    stack = WithTopics(plan(tmp_path))
    stack.infrastructure = [OnFullDisk(tmp_path, fails=range(10))]
    supervisor = Supervisor(stack, say=lambda _: None, on_ready=lambda: None)

    with pytest.raises(DevError, match=r"^sleeper: .*No space left on device.*server\.properties"):
        await asyncio.wait_for(supervisor.run(), PATIENCE_S)


class Unforeseen(Stack):
    """A stack whose topics cannot be created for a reason that is nobody's error class."""

    async def create_topics(self) -> None:
        raise LookupError("no such broker")


async def test_topics_that_cannot_be_created_for_any_reason_end_the_stack_with_it(tmp_path: Path) -> None:
    stack = Unforeseen(plan(tmp_path))
    stack.infrastructure = [Sleeper(tmp_path)]
    supervisor = Supervisor(stack, say=lambda _: None, on_ready=lambda: None)

    with pytest.raises(LookupError, match="no such broker"):
        await asyncio.wait_for(supervisor.run(), PATIENCE_S)

    assert not stack["sleeper"].is_running
