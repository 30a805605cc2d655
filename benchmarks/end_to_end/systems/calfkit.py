"""calfkit: agents that speak with one another over Kafka."""

from __future__ import annotations

from typing import ClassVar

from benchmarks.end_to_end import installed
from benchmarks.end_to_end.systems.base import PARTITIONS
from benchmarks.end_to_end.systems.peer import Peer


class Calfkit(Peer):
    """One process: gateway, agent, consumer node."""

    name = "calfkit"
    about = (
        "calfkit's own agent (it calls no others) on a scripted model, a gateway that hands it what comes "
        "from Kafka, a consumer node that publishes; all by default (but a new group begins at the "
        "beginning): a node takes one message at a time."
    )
    durable = "nothing of a run: offsets are committed before a message is handled, its producer's acks=1"
    refuses: ClassVar = {
        "approvals": "calfkit documents no wait for a human",
        "waiting": "calfkit documents no wait for a human",
        "slow": "one model call at a time by default: 500 of 500 ms take over 4 minutes",
        "in-flight": "one model call at a time by default: 2,000 of 10 s take hours",
    }
    workers: ClassVar[int] = 1
    acks: ClassVar[str] = "1"

    @classmethod
    def missing(cls) -> str | None:
        if not installed.has_package("calfkit"):
            return f"calfkit is not installed: {installed.INSTALL_HINT}"
        return None

    def launch(self) -> None:
        env = {
            "BENCH_PARTITIONS": str(PARTITIONS),
            "BENCH_WORKERS": str(self.workers),
            "BENCH_ACKS": self.acks,
        }
        for app in self.app_names:
            self.spawn_app(app, "calfkit_app", python=installed.python(), env=env)


class CalfkitTuned(Calfkit):
    """With the worker's concurrency cap raised, and its producers idempotent."""

    name = "calfkit-tuned"
    about = "As calfkit, with 2,000 messages at a time for each node, and idempotent producers (acks=all)."
    durable = "nothing of a run: offsets are committed before a message is handled"
    refuses: ClassVar = {
        "approvals": "calfkit documents no wait for a human",
        "waiting": "calfkit documents no wait for a human",
    }
    workers = 2_000
    acks = "all"


class CalfkitX2(CalfkitTuned):
    """Two workers: a node's consumer group is named after the node, so that its copies share its messages."""

    name = "calfkit-x2"
    about = (
        "As calfkit-tuned, with two processes, each a worker with all nodes and a gateway, in the same Kafka "
        "groups (a node's group is its name, calfkit's default)."
    )
    apps = 2
