"""What `towline dev` tells the person in front of it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from towline.dev.command import summary
from towline.dev.roles import TOWLINE
from towline.dev.stack import Stack, StackPlan
from towline.dev.workspace import env_lines, write_atomically


def stack(data: Path, relay: str, redis: str = "redis://127.0.0.1:1/0") -> Stack:
    given = {
        "TOWLINE_KAFKA_BOOTSTRAP": "127.0.0.1:1",
        "TOWLINE_REDIS_URL": redis,
        "TOWLINE_SCHEDULER_ADDRESS": "http://127.0.0.1:1",
        "TOWLINE_RELAY_URL": relay,
    }
    return Stack(StackPlan(data=data, app="none:none", given=given, roles=()))


def test_the_line_that_reads_the_addresses_works_in_any_shell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "my stack's"
    folder.mkdir()
    monkeypatch.chdir(folder)
    made, file = stack(tmp_path, "http://127.0.0.1:2"), Path("./towline.env")
    write_atomically(file, env_lines(made.addresses))
    (line,) = [line for line in summary(made, file).splitlines() if "set -a" in line]

    done = subprocess.run(
        ["/bin/sh", "-c", f"{line}; echo $TOWLINE_RELAY_URL"], capture_output=True, text=True, check=False
    )

    assert (done.stdout, done.stderr) == ("http://127.0.0.1:2\n", "")


def test_nobody_is_sent_to_a_relay_that_is_none(tmp_path: Path) -> None:
    assert "http://127.0.0.1:2/docs" in summary(stack(tmp_path, "http://127.0.0.1:2"), None)
    assert "/docs" not in summary(stack(tmp_path, "none"), None)


@pytest.mark.parametrize(
    "url", ["redis://:p-a-s-s@10.0.0.1:6379/0", "redis://10.0.0.1:6379/0?password=p-a-s-s"]
)
def test_the_password_of_a_redis_that_is_given_is_not_shown(url: str, tmp_path: Path) -> None:
    said = summary(stack(tmp_path, "http://127.0.0.1:2", redis=url), None)

    assert "p-a-s-s" not in said
    assert "TOWLINE_REDIS_URL=********" in said


def test_an_address_that_a_file_cannot_carry_is_refused_before_anything_is_started_and_not_shown(
    tmp_path: Path,
) -> None:
    url = "redis://:p-a-s-s$word@127.0.0.1:1/0"
    command = [*TOWLINE, "dev", "--free-ports", "--data", str(tmp_path), "--env-file", str(tmp_path / "env")]

    done = subprocess.run(
        command,
        env={**os.environ, "TOWLINE_REDIS_URL": url},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 1
    assert done.stderr.startswith("towline dev: TOWLINE_REDIS_URL holds")
    assert "p-a-s-s" not in done.stdout + done.stderr
    assert "is ready" not in done.stdout
