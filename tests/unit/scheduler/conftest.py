"""A runtime on a file of its own, closed after the test, and failpoints that no test leaves armed."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.unit.scheduler.test_store import open_runtime

from towline.scheduler.server.runtime import Runtime
from towline.scheduler.store import failpoints


@pytest.fixture(autouse=True)
def _disarmed() -> Iterator[None]:
    yield
    failpoints.disarm()


@pytest.fixture
def runtime_options() -> dict[str, Any]:
    """Options of `open_runtime`; a test file may have its own."""
    return {}


@pytest.fixture
async def opened(
    tmp_path: Path, runtime_options: dict[str, Any]
) -> AsyncIterator[tuple[Runtime, sqlite3.Connection]]:
    runtime, writer = open_runtime(tmp_path, **runtime_options)
    yield runtime, writer
    runtime.close()
    writer.close()


@pytest.fixture
def runtime(opened: tuple[Runtime, sqlite3.Connection]) -> Runtime:
    return opened[0]


@pytest.fixture
def writer(opened: tuple[Runtime, sqlite3.Connection]) -> sqlite3.Connection:
    return opened[1]
