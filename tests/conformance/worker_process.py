"""A stock worker in a process of its own, to be killed while it is inside an activity or an entity batch."""

from __future__ import annotations

import argparse
import signal
import threading
from pathlib import Path
from typing import Any

from durabletask import entities, task
from tests.conformance.hubs import Hub
from tests.conformance.processes import ServerProcess

_NEVER = threading.Event()


def block_the_first_time(marker: Path) -> None:
    """The process that makes ``marker`` stays here until it is killed; later ones pass."""
    try:
        marker.open("x").close()
    except FileExistsError:
        return
    _NEVER.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--address", required=True)
    parser.add_argument("--hub", required=True)
    parser.add_argument("--marker", type=Path, required=True)
    arguments = parser.parse_args()

    def activity(_: task.ActivityContext, __: object) -> str:
        block_the_first_time(arguments.marker)
        return "finished"

    def run_activity(ctx: task.OrchestrationContext, _: object) -> Any:
        return (yield ctx.call_activity(activity))

    def counter(ctx: entities.EntityContext, amount: int) -> int:
        total = int(ctx.get_state(int, 0)) + amount
        ctx.set_state(total)
        block_the_first_time(arguments.marker)
        return total

    server = ServerProcess(Path("unused"))
    server.port = int(arguments.address.rpartition(":")[2])
    hub = Hub(server, arguments.hub)
    hub.worker(orchestrators=[run_activity], activities=[activity], entities=[counter])
    signal.signal(signal.SIGTERM, lambda *_: _NEVER.set())
    _NEVER.wait()
    hub.close()


if __name__ == "__main__":
    main()
