"""durabletask-python's own suites, when the person who runs the tests has a checkout of them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.conformance import upstream

SOURCE = os.environ.get(upstream.SOURCE_VARIABLE)


@pytest.mark.skipif(
    SOURCE is None,
    reason=f"set {upstream.SOURCE_VARIABLE} to a checkout of durabletask-python to run its suites",
)
@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("suite", [upstream.CORE, upstream.MANAGED])
def test_the_suites_of_the_sdk_pass_unmodified(suite: str) -> None:
    assert SOURCE is not None
    assert upstream.run(Path(SOURCE), suite) == 0
