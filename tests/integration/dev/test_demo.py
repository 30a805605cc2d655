"""`towline demo`: seven runs through real Kafka, then nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.integration.dev.dev_process import ROOT, processes_that_mention

from towline.dev.stack import ADDRESS_VARIABLES

PATTERNS = {
    "single_agent",
    "multi_agent",
    "streaming",
    "chaining",
    "concurrency",
    "conditionals",
    "human_in_the_loop",
}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_demo_prints_a_row_a_pattern_and_leaves_nothing(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in ADDRESS_VARIABLES}
    done = subprocess.run(
        [sys.executable, "-m", "towline.cli", "demo"],
        cwd=ROOT,
        env={**environment, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [
        line.split() for line in done.stdout.splitlines() if line.split()[:1] and line.split()[0] in PATTERNS
    ]
    assert {row[0] for row in rows} == PATTERNS
    assert len(rows) == len(PATTERNS)
    for row in rows:
        assert row[1].startswith(f"{row[0]}-")
        assert row[2] == "completed"
        assert int(row[-1]) > 0
    assert processes_that_mention(str(tmp_path)) == []
    assert list(tmp_path.glob("towline-dev-*")) == []


def test_without_the_examples_the_demo_says_where_they_are(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "towline.cli", "demo"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert "run it in a clone of the repository" in done.stderr
