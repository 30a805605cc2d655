"""`towline dev` as a person uses it: kills are mended, data carry on, nothing is left."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Generator
from pathlib import Path

import pytest
from tests.integration.dev.dev_process import (
    APP,
    DevProcess,
    alive,
    processes_that_mention,
)
from tests.waiting import eventually

from towline.contracts.client import Run, TowlineClient
from towline.contracts.events import ApprovalRequested, RunCompleted
from towline.contracts.settings import KafkaSettings
from towline.dev import ports
from towline.dev.roles import TOWLINE

ARTICLE = {"topic": "tides", "max_review_attempts": 3, "approval_timeout_seconds": 600}
PARTS = {"kafka", "valkey", "scheduler", "bridge", "worker", "relay"}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


async def asked(run: Run) -> str:
    """Wait for the run's first question; its approval id."""
    async for event in run.events():
        if isinstance(event.data, ApprovalRequested):
            return event.data.approval_id
    raise AssertionError("the run ended without asking")


async def write_article(kafka: KafkaSettings) -> None:
    async with TowlineClient(kafka) as client:
        run = await client.start("write_article", ARTICLE)
        await run.approve(await asked(run))
        assert isinstance((await run.outcome(60)).data, RunCompleted)


@pytest.fixture(scope="module")
def dev(tmp_path_factory: pytest.TempPathFactory) -> Generator[DevProcess]:
    """One that all tests below share; each leaves it whole."""
    with DevProcess(tmp_path_factory.mktemp("dev")) as process:
        yield process


async def test_every_part_is_a_process_of_its_own_and_runs_complete(dev: DevProcess) -> None:
    assert set(dev.parts) == PARTS
    assert len(set(dev.parts.values())) == len(PARTS)
    assert set(dev.addresses) == {
        "TOWLINE_KAFKA_BOOTSTRAP",
        "TOWLINE_REDIS_URL",
        "TOWLINE_SCHEDULER_ADDRESS",
        "TOWLINE_RELAY_URL",
    }
    await write_article(dev.kafka)


@pytest.mark.parametrize("name", sorted(PARTS))
async def test_a_part_that_is_killed_is_started_again_at_its_address(dev: DevProcess, name: str) -> None:
    before, addresses = dev.parts[name], dev.addresses
    said = dev.text.count(f"{name} is ready")
    os.kill(before, signal.SIGKILL)
    eventually(lambda: dev.part(name) not in (None, before), f"{name} is started again")
    eventually(lambda: dev.text.count(f"{name} is ready") > said, f"{name} is ready again", timeout_s=60)
    assert f"{name} ended with status -9: started again in" in dev.text
    assert dev.addresses == addresses
    await write_article(dev.kafka)


def test_a_second_one_on_the_same_folder_is_refused_in_one_line(dev: DevProcess) -> None:
    second = DevProcess(dev.data.parent)
    second.output, second.env_file = dev.data.parent / "second.log", dev.data.parent / "second.env"
    assert second.launch().wait(30) == 1
    (line,) = second.text.splitlines()
    assert (
        line == f"towline dev: another towline dev runs on {dev.data}: stop it, or give --data another folder"
    )


@pytest.mark.parametrize("option", ["--data", "--env-file"])
@pytest.mark.parametrize("path", ["a-file/x", "/proc/x"])
def test_a_path_that_cannot_be_written_is_named_before_anything_is_started(
    option: str, path: str, tmp_path: Path
) -> None:
    (tmp_path / "a-file").touch()
    target = str(tmp_path / path)

    done = subprocess.run(
        [*TOWLINE, "dev", "--free-ports", option, target],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 1
    assert done.stderr.startswith(f"towline dev: {option} {target}: cannot be written (")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


async def test_after_a_kill_it_carries_on_with_the_same_data_and_a_stop_leaves_nothing(
    tmp_path: Path,
) -> None:
    dev = DevProcess(tmp_path)
    with dev:
        addresses, killed = dev.addresses, dev.parts
        async with TowlineClient(dev.kafka) as client:
            run = await client.start("write_article", ARTICLE, run_id="kept")
            approval_id = await asked(run)
        dev.kill()
        eventually(lambda: not alive(killed), "the parts die with it")
        dev.start()
        assert dev.addresses == addresses
        assert not set(dev.parts.values()) & set(killed.values())
        async with TowlineClient(dev.kafka) as client:
            run = client.run("kept")
            await run.approve(approval_id)
            assert isinstance((await run.outcome(60)).data, RunCompleted)
        running = dev.parts
        assert dev.stop() == 0
    assert alive(running) == []
    assert processes_that_mention(str(tmp_path)) == []
    assert not dev.env_file.exists()
    used = [int(address.removesuffix("/0").rpartition(":")[2]) for address in addresses.values()]
    assert [port for port in used if not ports.is_free(port)] == []


async def test_addresses_of_the_environment_are_used_instead_of_starting_those_parts(
    tmp_path: Path, kafka: str, valkey: str, scheduler: str
) -> None:
    given = {
        "TOWLINE_KAFKA_BOOTSTRAP": kafka,
        "TOWLINE_REDIS_URL": valkey,
        "TOWLINE_SCHEDULER_ADDRESS": scheduler,
    }
    own = {
        "TOWLINE_KAFKA_TOPIC_PREFIX": "reuse.",
        "TOWLINE_SCHEDULER_TASKHUB": "reuse",
        "TOWLINE_RELAY_GROUP": "reuse",
    }
    with DevProcess(tmp_path, environment=given | own) as dev:
        assert set(dev.parts) == {"bridge", "worker", "relay"}
        assert given.items() <= dev.addresses.items()
        await write_article(dev.kafka)


def test_an_app_that_cannot_be_loaded_ends_it_with_what_the_worker_said(
    tmp_path: Path, kafka: str, valkey: str, scheduler: str
) -> None:
    environment = {
        "TOWLINE_KAFKA_BOOTSTRAP": kafka,
        "TOWLINE_REDIS_URL": valkey,
        "TOWLINE_SCHEDULER_ADDRESS": scheduler,
        "TOWLINE_RELAY_URL": "http://127.0.0.1:1",
        "TOWLINE_KAFKA_TOPIC_PREFIX": "noapp.",
    }
    dev = DevProcess(tmp_path, app="no_such_app:setup_worker", environment=environment)
    assert dev.launch().wait(90) == 1
    assert "towline dev: worker ended once before it was ready, last with status 2" in dev.text
    assert "no_such_app" in dev.text.partition("towline dev: worker")[2]
    assert processes_that_mention(str(tmp_path)) == []
    assert APP not in dev.text
