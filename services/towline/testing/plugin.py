"""The pytest plugin: a stack with your app on it for the session, and a client for each test.

Choose the app by ``--towline-app module:attr``, the ini option ``towline_app``, or a fixture `towline_app` of
your own; the backend by ``--towline-backend``, ``towline_backend`` or `TOWLINE_TEST_BACKEND`
(``embedded`` by default, ``containers``).

Nothing of Towline is imported before a fixture is used.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import timedelta
from typing import TYPE_CHECKING, Any, cast

import pytest
import pytest_asyncio

if TYPE_CHECKING:
    from towline.contracts.client import TowlineClient
    from towline.testing.stack import TestStack

_BACKENDS = ("embedded", "containers")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of the command line and the ini file."""
    group = parser.getgroup("towline")
    group.addoption("--towline-app", metavar="MODULE:ATTR", help="App that the tests' worker hosts")
    group.addoption("--towline-backend", choices=_BACKENDS, help="Where Kafka and Redis come from")
    parser.addini("towline_app", "App that the tests' worker hosts (module:attr)")
    parser.addini("towline_backend", "embedded or containers", default="")


@pytest.fixture(scope="session")
def towline_app(pytestconfig: pytest.Config) -> str:
    """``module:attr`` of the app under test; override it, or use ``--towline-app`` or the ini option."""
    app = pytestconfig.getoption("--towline-app") or pytestconfig.getini("towline_app")
    if not app:
        raise pytest.UsageError(
            "which app? Give --towline-app module:attr, set towline_app in the ini file, "
            "or define a fixture towline_app (scope session) that returns it"
        )
    return str(app)


@pytest.fixture(scope="session")
def towline_backend(pytestconfig: pytest.Config) -> str:
    """``embedded`` or ``containers``."""
    backend = (
        pytestconfig.getoption("--towline-backend")
        or os.environ.get("TOWLINE_TEST_BACKEND")
        or pytestconfig.getini("towline_backend")
        or _BACKENDS[0]
    )
    if backend not in _BACKENDS:
        raise pytest.UsageError(f"towline backend {backend!r} is none of {', '.join(_BACKENDS)}")
    return str(backend)


@pytest.fixture(scope="session")
def towline_settings() -> dict[str, str]:
    """More variables for bridge, worker and relay; override it."""
    return {}


@pytest.fixture(scope="session")
def towline_stack(
    towline_app: str,
    towline_backend: str,
    towline_settings: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Generator[TestStack]:
    """The whole stack, started once for the session."""
    from towline.testing.stack import running_stack

    running = running_stack(
        towline_app,
        data=tmp_path_factory.mktemp("towline"),
        backend=cast("Any", towline_backend),
        environ=os.environ,
        settings=towline_settings,
    )
    # In a thread: a session fixture may be set up while an event loop runs.
    with ThreadPoolExecutor(max_workers=1) as thread, ExitStack() as exits:
        stack = thread.submit(running.__enter__).result()
        exits.callback(lambda: thread.submit(running.__exit__, None, None, None).result())
        yield stack


@pytest_asyncio.fixture
async def towline_client(towline_stack: TestStack) -> AsyncGenerator[TowlineClient]:
    """A typed client of the stack."""
    from towline.contracts.client import TowlineClient

    async with TowlineClient(
        towline_stack.kafka, source="towline/test", payloads=towline_stack.payloads
    ) as client:
        yield client


@pytest.fixture
def run_and_wait(towline_client: TowlineClient) -> Callable[..., Awaitable[Any]]:
    """An async function that starts a run and gives its output, or raises its error."""

    async def run(run_type: str, run_input: Any = None, *, timeout_s: float = 30.0, **more: Any) -> Any:
        started = await towline_client.start(run_type, run_input, **more)
        return await started.result(timeout_s)

    return run


@pytest.fixture
def skip_time(towline_stack: TestStack) -> Callable[[timedelta], None]:
    """``skip_time(timedelta(days=3))``: timers and timeouts of all runs see that time pass, at once."""
    return towline_stack.skip_time
