"""A child process: how it is ended, and what is left of it."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest
from tests.integration.dev.dev_process import processes_that_mention
from tests.waiting import eventually

from towline.dev.process import Child, PidFile, start_time

_DEAF = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("deaf", flush=True)
time.sleep(60)
"""


def test_a_child_that_does_not_hear_sigterm_is_killed_and_its_pid_file_is_gone(tmp_path: Path) -> None:
    pid_file = PidFile(tmp_path / "pid")
    child = Child("deaf", [sys.executable, "-c", _DEAF], pid_file=pid_file)
    eventually(lambda: "deaf" in child.last_lines, "it listens to nothing")
    assert pid_file.living() == child.pid
    assert child.stop(timeout_s=0.1) == -signal.SIGKILL
    assert start_time(child.pid) is None
    assert not pid_file.path.exists()
    assert child.stop(timeout_s=0.1) == -signal.SIGKILL


def test_a_child_that_cannot_be_recorded_does_not_run(tmp_path: Path) -> None:
    (tmp_path / "part").write_text("a file where the folder should be")
    command = [sys.executable, "-c", "import time; time.sleep(60)", str(tmp_path)]
    with pytest.raises(OSError, match="part"):
        Child("unknown", command, pid_file=PidFile(tmp_path / "part" / "pid"))
    assert processes_that_mention(str(tmp_path)) == []
