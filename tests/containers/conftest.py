"""A real Docker engine for these tests: the machine's, else one of their own.

Where none can be had they skip and say why. In CI (`CI` is set) they fail instead, unless the machine
lacks what no test can bring: Linux, root and the capabilities that an engine needs.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NoReturn
from uuid import uuid4

import pytest
from tests.containers import images
from tests.containers.compose import Project, compose_command
from tests.containers.engine import (
    Engine,
    EngineError,
    NoEngineError,
    running_engine,
    why_none_can_be_started,
)

from towline.dev import ports

IMAGE_TIMEOUT_S = 900
UNREACHABLE = (
    "(temporary failure in name|name or service not known|dns error|network is unreachable|"
    "connection refused|certificate_verify_failed|unknownissuer|timed out|tcp connect error|"
    "from versions: none)"
)


def unavailable(error: Exception | str) -> NoReturn:
    """Skip the tests that need what cannot be had; in CI that is a fault, if the machine could have it."""
    reason = str(error)[-600:]
    if os.environ.get("CI") and why_none_can_be_started() is None:
        pytest.fail(f"in CI, where an engine can be had: {reason}", pytrace=False)
    pytest.skip(reason)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here) and item.get_closest_marker("timeout") is None:
            # The first test makes images: minutes, on a busy machine.
            item.add_marker(pytest.mark.timeout(1200))


@pytest.fixture(scope="session")
def compose_ready() -> Generator[Future[list[str]]]:
    """The compose command, while it is being built: that takes as long as the images do."""
    with ThreadPoolExecutor(max_workers=1) as thread:
        yield thread.submit(compose_command)


@pytest.fixture(scope="session")
def bare_engine() -> Generator[Engine]:
    """An engine, perhaps without any image."""
    folder = Path(tempfile.mkdtemp(prefix="towline-engine-"))
    try:
        with running_engine(folder / "engine") as engine:
            yield engine
    except NoEngineError as error:
        unavailable(error)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def engine(bare_engine: Engine, compose_ready: Future[list[str]]) -> Engine:
    """An engine with the public images that are needed."""
    try:
        images.provide(bare_engine)
    except NoEngineError as error:
        unavailable(error)
    return bare_engine


@pytest.fixture(scope="session")
def towline_image(engine: Engine) -> str:
    """Our image, built from this work tree."""
    try:
        return images.build_towline(engine, "towline:latest" if engine.is_own else "towline-test:latest")
    except EngineError as error:
        if re.search(UNREACHABLE, str(error), re.IGNORECASE):
            unavailable(f"what the image is made of cannot be fetched from within a build: {error}")
        raise


@pytest.fixture(scope="session")
def compose(compose_ready: Future[list[str]]) -> list[str]:
    """The command that compose is started with."""
    try:
        return compose_ready.result(IMAGE_TIMEOUT_S)
    except NoEngineError as error:
        unavailable(error)


@pytest.fixture(scope="module")
def project(engine: Engine, towline_image: str, compose: list[str]) -> Generator[Project]:
    """The compose project, not started; gone at the end, also after a failure."""
    made = Project(
        engine,
        compose,
        f"towline-test-{uuid4().hex[:8]}",
        {
            "TOWLINE_IMAGE": towline_image,
            "KAFKA_PORT": str(ports.lease()),
            "RELAY_PORT": str(ports.lease()),
        },
    )
    try:
        yield made
    finally:
        made.down()
