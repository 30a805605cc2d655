"""Alert rules and the scrape configuration, judged by promtool."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from tests.integration.telemetry.go_build import DEPLOY, NoProgramError, built

OBSERVABILITY = DEPLOY / "observability"
pytestmark = pytest.mark.timeout(900)  # the first run on a machine builds promtool


@pytest.fixture(scope="module")
def promtool() -> str:
    if (found := shutil.which("promtool")) is not None:
        return found
    try:
        # Without the discovery of every cloud: a tenth of the build.
        package = "github.com/prometheus/prometheus/cmd/promtool"
        files = ("go.mod", "go.sum")
        return str(built("promtool", DEPLOY / "promtool", files, package, tags="remove_all_sd"))
    except NoProgramError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))


def ask(promtool: str, *arguments: str, folder: Path = OBSERVABILITY) -> subprocess.CompletedProcess[str]:
    return subprocess.run([promtool, *arguments], cwd=folder, capture_output=True, text=True, check=False)


def test_the_rules_are_valid(promtool: str) -> None:
    checked = ask(promtool, "check", "rules", "alerts.yaml")
    assert checked.returncode == 0, checked.stderr


def test_the_rules_fire_when_they_should_and_not_before(promtool: str) -> None:
    tested = ask(promtool, "test", "rules", "alerts_test.yaml")
    assert tested.returncode == 0, tested.stdout + tested.stderr


def test_the_scrape_configuration_is_valid(promtool: str) -> None:
    checked = ask(promtool, "check", "config", "--syntax-only", "prometheus.yml")
    assert checked.returncode == 0, checked.stderr


def test_the_test_can_fail(promtool: str, tmp_path: Path) -> None:
    rules = (OBSERVABILITY / "alerts.yaml").read_text()
    (tmp_path / "alerts.yaml").write_text(
        rules.replace("towline_approvals_oldest_age_seconds", "another_metric")
    )
    shutil.copy(OBSERVABILITY / "alerts_test.yaml", tmp_path)
    tested = ask(promtool, "test", "rules", "alerts_test.yaml", folder=tmp_path)
    assert tested.returncode != 0
    assert "TowlineApprovalOverdue" in tested.stdout + tested.stderr
