"""What one would write first: FastStream subscribers around the SDK's in-memory backend."""

from __future__ import annotations

import sys
from typing import ClassVar

from benchmarks.end_to_end.systems.peer import Peer

from towline.dev import ports


class Straightforward(Peer):
    """Two processes: the in-memory backend; the app with its subscribers and the SDK's worker."""

    name = "straightforward"
    about = (
        "FastStream subscribers, the SDK's worker with 64 threads (its default of cores plus four "
        "would allow six model calls at once) and the SDK's in-memory backend; quiet logs."
    )
    durable = "nothing"
    refuses: ClassVar = {"in-flight": "64 threads: 2,000 model calls of 10 s would take over 5 minutes"}

    def launch(self) -> None:
        env = {"BENCH_BACKEND_PORT": str(ports.lease(None))}
        self.spawn_app("backend", "straightforward_backend", python=sys.executable, env=env)
        for app in self.app_names:
            self.spawn_app(app, "straightforward_app", python=sys.executable, env=env)


class StraightforwardX2(Straightforward):
    """Two of its app on the one backend."""

    name = "straightforward-x2"
    about = (
        "As straightforward, with two processes of the app in the same Kafka groups, each with its own SDK "
        "worker of 64 threads, on the one in-memory backend."
    )
    refuses: ClassVar = {"in-flight": "128 threads: 2,000 model calls of 10 s would take over 2 minutes"}
    apps = 2
