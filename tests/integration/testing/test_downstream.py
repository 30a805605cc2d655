"""The downstream project's own tests, run as its team runs them: in its folder, with the plugin."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
# Plugins that are installed for our own tests, and what pytest would leave behind.
NOT_THEIRS = [f"-pno:{name}" for name in ("schemathesis", "hypothesispytest", "xdist", "cacheprovider")]
PROJECT = Path(__file__).resolve().parents[3] / "examples" / "downstream"


def run_tests(*options: str, **environ: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("TOWLINE_", "PYTEST"))}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *NOT_THEIRS, *options],
        cwd=PROJECT,
        env={**kept, **environ},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


def test_a_downstream_project_is_green_without_docker(kafka: str, valkey: str) -> None:
    done = run_tests(TOWLINE_KAFKA_BOOTSTRAP=kafka, TOWLINE_REDIS_URL=valkey)

    assert done.returncode == 0, done.stdout + done.stderr
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed.group(1)) >= 8
    assert "skipped" not in done.stdout


@pytest.mark.parametrize(
    ("options", "environ", "said"),
    [
        (("--towline-app", "no_such_module:setup"), {}, "there is no module 'no_such_module'"),
        (("-o", "towline_app="), {}, "Give --towline-app module:attr"),
        ((), {"TOWLINE_TEST_BACKEND": "cloud"}, "'cloud' is none of embedded, containers"),
        (
            (),
            {"TOWLINE_TEST_BACKEND": "containers", "DOCKER_HOST": "tcp://127.0.0.1:1"},
            "or use --towline-backend embedded",
        ),
    ],
)
def test_a_stack_that_cannot_be_had_says_why(
    kafka: str, valkey: str, options: tuple[str, ...], environ: dict[str, str], said: str
) -> None:
    given = {"TOWLINE_KAFKA_BOOTSTRAP": kafka, "TOWLINE_REDIS_URL": valkey}
    if environ.get("TOWLINE_TEST_BACKEND") == "containers":
        given = {}

    done = run_tests("-k", "the_agent_alone", *options, **given, **environ)

    assert done.returncode != 0
    assert said in done.stdout + done.stderr
