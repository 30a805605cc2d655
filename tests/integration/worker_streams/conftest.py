from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.integration.relay.valkey import Valkey


@pytest.fixture
def valkey() -> Iterator[Valkey]:
    server = Valkey().start()
    yield server
    server.close()
