"""One Kafka, one Valkey and one scheduler for all processes of a parallel run.

Tests are strangers to each other by topic prefix, task hub and run id, in one process or in several; a broker
for each process would only cost its start, its memory and its idling. The controller of pytest-xdist starts
the parts and tells the processes where they are; without it tests/integration/conftest.py starts them.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from towline.dev import KafkaPart, SchedulerPart, ValkeyPart

_UNITS = Path(__file__).parent / "unit"


def addresses_of(config: pytest.Config) -> Mapping[str, str]:
    """``TOWLINE_…`` addresses of what the controller started; none if there is no controller."""
    told: dict[str, Any] = getattr(config, "workerinput", {})
    return told.get(SharedParts.__name__, {})


class SharedParts:
    """The controller's plugin. The parts' data and logs are kept when a test failed."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._running = ExitStack()
        self._folder: Path | None = None
        self._addresses: dict[str, str] = {}

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_setupnodes(self) -> None:
        if all(Path(path.partition("::")[0]).resolve().is_relative_to(_UNITS) for path in self._config.args):
            return
        self._folder = Path(tempfile.mkdtemp(prefix="towline-parts-"))
        for kind in (KafkaPart, ValkeyPart, SchedulerPart):
            part = kind(data=self._folder / kind.__name__)
            if part.addresses.keys().isdisjoint(os.environ):
                self._addresses |= self._running.enter_context(part).addresses

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        node.workerinput[SharedParts.__name__] = self._addresses

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        self._running.close()
        if self._folder is None:
            return
        if exitstatus in {pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED}:
            shutil.rmtree(self._folder)
        else:
            print(f"\ndata and logs of the shared Kafka, Valkey and scheduler: {self._folder}")
