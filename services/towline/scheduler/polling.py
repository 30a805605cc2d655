"""How gRPC's core waits for its sockets."""

from __future__ import annotations

import os
from typing import Final

_VARIABLE: Final = "GRPC_EXPERIMENTS"
_POLLER: Final = "-event_engine_listener,-event_engine_client,-event_engine_for_all_other_endpoints"


def choose_poller() -> None:
    """Have the threads that take gRPC's events wait for its sockets too, unless ``GRPC_EXPERIMENTS`` is set.

    By default, threads of gRPC's own read and write: every event changes threads once more on its way. The
    core's older poller does without, and takes a seventh less CPU in the scheduler. The core reads the
    variable when ``grpc`` is imported: call this before. One that does not know these switches any more says
    so on stderr and goes on (`src/core/lib/experiments` of grpc).
    """
    os.environ.setdefault(_VARIABLE, _POLLER)
