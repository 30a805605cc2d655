"""Settings of the scheduler: where they come from, and what is said about those that make no sense."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from towline.scheduler.settings import ConfigurationError, SchedulerSettings, variables


def test_flags_come_before_the_environment_and_that_before_defaults() -> None:
    environ = {
        "TOWLINE_SCHEDULER_GRACE_S": "7.5",
        "TOWLINE_SCHEDULER_DATA": "/tmp/a",
        "TOWLINE_SCHEDULER_LISTEN": "",
    }

    settings = SchedulerSettings.read({"data": Path("/tmp/b"), "listen": None}, environ)

    assert (settings.data, settings.grace_s, settings.listen) == (Path("/tmp/b"), 7.5, "127.0.0.1:8080")


@pytest.mark.parametrize("text", ["1", "true", "Yes", "ON"])
def test_switches_take_the_usual_words(text: str) -> None:
    assert SchedulerSettings.read({}, {"TOWLINE_SCHEDULER_TEST_CLOCK": text}).test_clock is True


@pytest.mark.parametrize(
    ("variable", "text", "expected"),
    [
        ("MAX_LOSSES", "0", "TOWLINE_SCHEDULER_MAX_LOSSES must be at least 1, not 0"),
        ("MAX_LOSSES", "many", "must be a whole number, not 'many'"),
        ("RETENTION_S", "0", "must be more than 0, not 0"),
        ("RETENTION_S", "nan", "must be a number, not 'nan'"),
        ("TEST_CLOCK", "maybe", "must be true or false, not 'maybe'"),
    ],
)
def test_a_value_that_makes_no_sense_is_named(variable: str, text: str, expected: str) -> None:
    with pytest.raises(ConfigurationError, match=expected):
        SchedulerSettings.read({}, {f"TOWLINE_SCHEDULER_{variable}": text})


def test_a_flag_that_makes_no_sense_is_named_as_a_flag() -> None:
    with pytest.raises(ConfigurationError, match=r"--grace-s must be at least 0, not -1\.0"):
        SchedulerSettings.read({"grace_s": -1.0}, {})


def test_secrets_are_neither_shown_nor_printed() -> None:
    settings = SchedulerSettings.read({"token": "hunter2"}, {})

    assert "hunter2" not in repr(settings)
    assert [variable.name for variable in variables() if variable.is_secret] == ["TOWLINE_SCHEDULER_TOKEN"]


def test_the_server_starts_without_what_it_does_not_need() -> None:
    """Each of these would take a good part of the second in which a killed server has to be back."""
    script = (
        "import sys, towline.scheduler.command; "
        "print(*({'pydantic', 'rich', 'opentelemetry', 'durabletask.worker', 'azure'} & sys.modules.keys()))"
    )
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert shown.stdout.split() == []
