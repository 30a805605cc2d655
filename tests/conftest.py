"""For all tests: this machine's own settings stay out, and Hypothesis judges results, not speed."""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path

import pytest
from hypothesis import settings
from tests.shared_parts import SharedParts

# Read by the session's fixtures: a part that runs already is used as it is.
_KEPT = {"TOWLINE_CACHE_DIR", "TOWLINE_KAFKA_BOOTSTRAP", "TOWLINE_REDIS_URL", "TOWLINE_SCHEDULER_ADDRESS"}
_KEPT_PREFIXES = ("TOWLINE_TEST_", "TOWLINE_UPSTREAM_")

for _name in [name for name in os.environ if name.startswith(("TOWLINE_", "OTEL_"))]:
    if _name not in _KEPT and not _name.startswith(_KEPT_PREFIXES):
        del os.environ[_name]

# Code that is not deterministic shows where every turn replays. Tests of what is kept between turns say so.
os.environ["TOWLINE_WORKER_REPLAY"] = "always"

# A deadline fails a test because the machine was busy. With CI's profile a failure can be repeated.
settings.register_profile("towline", deadline=None, derandomize=bool(os.environ.get("CI")), print_blob=True)
settings.load_profile("towline")

# Files of more than twenty seconds, the longest first: one begun last holds up the end of a parallel run.
_LONGEST_FIRST = (
    "integration/dev/test_dev_command.py",
    "chaos/test_short.py",
    "integration/worker/test_crashes.py",
    "integration/relay/test_stream.py",
    "integration/worker/test_dispatchers.py",
    "conformance/test_durability.py",
    "integration/telemetry/test_trace.py",
    "integration/security/test_secure_stack.py",
    "integration/relay/test_failures.py",
    "integration/delivery/test_consumer.py",
    "conformance/test_growth.py",
    "conformance/test_patience.py",
    "integration/bridge/test_control.py",
    "integration/testing/test_downstream.py",
    "integration/contracts/test_topics_and_producer.py",
    "chaos/test_scheduler_kill_loop.py",
    "integration/relay/test_http.py",
    "conformance/test_runs.py",
    "integration/payloads/test_large_payloads.py",
    "integration/wire/test_kill.py",
    "conformance/test_rules.py",
    "integration/bridge/test_neighbours_away.py",
)
_RANKS = {Path(__file__).parent / name: rank for rank, name in enumerate(_LONGEST_FIRST)}


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What a test has logged may be no UTF-8 (half a surrogate pair, say), which pytest-xdist can't send."""
    report = yield
    report.sections = [
        (name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections
    ]
    return report


def pytest_configure(config: pytest.Config) -> None:
    """In pytest-xdist's controller, parts for all of its processes."""
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(SharedParts(config))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest; what follows keeps its order, services before units."""
    units = Path(__file__).parent / "unit"
    items.sort(key=lambda item: (_RANKS.get(item.path, len(_RANKS)), item.path.is_relative_to(units)))
