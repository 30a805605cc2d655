"""Recording a run of a scheduler that asks for a token, as a user does it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import pytest

from towline.contracts.settings import SchedulerSettings
from towline.dev import SchedulerPart
from towline.testing import TestKitError, record

TOKEN = "the-schedulers-token"


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Generator[str]:
    with SchedulerPart(data=tmp_path_factory.mktemp("scheduler"), options=("--token", TOKEN)) as part:
        yield part.address


def record_by_command(file: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "towline.testing.histories", "no-such-run", str(file)],
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_with_the_token_the_scheduler_answers(address: str, tmp_path: Path) -> None:
    done = record_by_command(
        tmp_path / "run.json",
        TOWLINE_SCHEDULER_ADDRESS=address,
        TOWLINE_SCHEDULER_TASKHUB="mine",
        TOWLINE_SCHEDULER_CREDENTIAL="token",
        TOWLINE_SCHEDULER_TOKEN=TOKEN,
    )

    assert done.returncode == 2
    assert done.stderr.strip() == f"{address} has no run no-such-run in task hub mine"
    assert not (tmp_path / "run.json").exists()


def test_without_it_the_refusal_names_the_settings(address: str) -> None:
    with pytest.raises(TestKitError, match=r"UNAUTHENTICATED.*TOWLINE_SCHEDULER_ADDRESS.*_TOKEN"):
        record(SchedulerSettings(address=address), "no-such-run")


def test_a_scheduler_that_is_away_is_named_by_its_setting(tmp_path: Path) -> None:
    done = record_by_command(tmp_path / "run.json", TOWLINE_SCHEDULER_ADDRESS="http://127.0.0.1:1")

    assert done.returncode == 2
    assert "UNAVAILABLE" in done.stderr
    assert "see TOWLINE_SCHEDULER_ADDRESS" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_wrong_setting_is_named_in_one_line(tmp_path: Path) -> None:
    done = record_by_command(tmp_path / "run.json", TOWLINE_SCHEDULER_CREDENTIAL="magic")

    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("SchedulerSettings.credential: ")
