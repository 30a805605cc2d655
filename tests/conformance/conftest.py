"""A scheduler process for each module, and a task hub of its own for each test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from tests.conformance.hubs import Hub
from tests.conformance.processes import ServerProcess


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "acceptance(number): the point of the acceptance list in README.md")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server that no test of the module kills."""
    with ServerProcess(tmp_path_factory.mktemp("scheduler") / "data") as process:
        yield process


@pytest.fixture
def hub(server: ServerProcess) -> Iterator[Hub]:
    made = Hub(server)
    yield made
    made.close()


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[ServerProcess]:
    """A server that the test may kill."""
    with ServerProcess(tmp_path / "data") as process:
        yield process


@pytest.fixture
def own_hub(own_server: ServerProcess) -> Iterator[Hub]:
    made = Hub(own_server)
    yield made
    made.close()


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[Callable[..., ServerProcess]]:
    """Start servers with options; all are stopped at the end."""
    with ExitStack() as exits:

        def start(*options: str, folder: Path | None = None) -> ServerProcess:
            data = folder if folder is not None else tmp_path / "data"
            return exits.enter_context(ServerProcess(data, options=options))

        yield start
