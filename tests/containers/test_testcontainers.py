"""`towline.testing`'s containers backend, as a downstream team uses it, and the containers it is made of."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from uuid import uuid4

import pytest
from tests.containers.engine import Engine
from tests.containers.images import ROOT

pytestmark = [pytest.mark.docker, pytest.mark.slow]
PROJECT = ROOT / "examples" / "downstream"
# Ryuk, the reaper, is one more image to pull; the plugin's own fixtures remove what they start.
# As somebody has them exported who works with another Kafka.
ANOTHER_KAFKA = {
    "TOWLINE_KAFKA_SECURITY_PROTOCOL": "SASL_PLAINTEXT",
    "TOWLINE_KAFKA_SASL_USERNAME": "ann",
    "TOWLINE_KAFKA_SASL_PASSWORD": "secret",
}
TESTCONTAINERS = {"TESTCONTAINERS_RYUK_DISABLED": "true", "TESTCONTAINERS_CONNECTION_MODE": "docker_host"}


def run_tests(engine: Engine, *options: str, **exported: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("TOWLINE_", "PYTEST"))}
    given = engine.environment()
    docker = {name: value for name, value in given.items() if name.startswith("DOCKER_")}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options],
        cwd=PROJECT,
        env={**kept, **docker, **TESTCONTAINERS, "TOWLINE_TEST_BACKEND": "containers", **exported},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )


def containers(engine: Engine) -> set[str]:
    return set(engine.docker("ps", "--all", "--quiet").split())


def test_a_downstream_project_is_green_with_containers_and_leaves_none(engine: Engine) -> None:
    before = containers(engine)

    done = run_tests(engine)

    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed.group(1)) >= 8
    assert "skipped" not in done.stdout
    assert containers(engine) == before


def test_how_to_reach_another_kafka_is_not_for_the_one_in_the_container(engine: Engine) -> None:
    done = run_tests(engine, "-k", "the_agent_alone", **ANOTHER_KAFKA)

    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]


def test_a_downstream_project_whose_app_is_broken_leaves_no_container(engine: Engine) -> None:
    before = containers(engine)

    done = run_tests(engine, "-k", "the_agent_alone", "--towline-app", f"no_module_{uuid4().hex[:6]}:setup")

    assert done.returncode != 0
    assert "there is no module" in done.stdout + done.stderr
    assert containers(engine) == before
