"""What one would write first: FastStream subscribers around the SDK's in-memory backend."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from benchmarks.end_to_end.job import MODEL_MS_VARIABLE
from benchmarks.end_to_end.systems.base import Kind, Message, Said, System

from towline.contracts.kafka import connect
from towline.dev import ports
from towline.dev.stack import Stack, StackPlan

REQUESTS, APPROVALS, SAYS = "bench.requests", "bench.approvals", "bench.says"
PARTITIONS = 6
_PACKAGE = "benchmarks.end_to_end.straightforward"
_READY_S = 60.0


class Straightforward(System):
    """Two processes: the in-memory backend; the app with its subscribers and the SDK's worker."""

    name = "straightforward"
    about = (
        "FastStream subscribers, the SDK's worker with 64 threads (its default of cores plus four "
        "would allow six model calls at once) and the SDK's in-memory backend; "
        "quiet logs. Durable: nothing."
    )

    def __init__(self, model_ms: int) -> None:
        super().__init__(model_ms)
        self._folder = tempfile.TemporaryDirectory(prefix="towline-bench-")
        self._stack = Stack(
            StackPlan(
                data=Path(self._folder.name),
                app="",
                # Only Kafka is wanted.
                given={"TOWLINE_REDIS_URL": "none", "TOWLINE_SCHEDULER_ADDRESS": "none"},
                roles=(),
            )
        )
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def bootstrap(self) -> str:
        return self._stack.kafka.bootstrap

    @property
    def listens(self) -> Sequence[str]:
        return (SAYS,)

    @property
    def processes(self) -> Mapping[str, int]:
        kafka = self._stack["kafka"].pid
        assert kafka is not None
        return {"kafka": kafka, **{name: child.pid for name, child in self._children.items()}}

    @property
    def own(self) -> Sequence[str]:
        return ("backend", "app")

    def request(self, run_id: str, kind: Kind, message: str) -> Message:
        value = {"run_id": run_id, "kind": kind, "message": message}
        return Message(REQUESTS, run_id.encode(), json.dumps(value).encode())

    def decide(self, run_id: str, approval: str) -> Message:
        del approval
        value = {"run_id": run_id, "approved": True}
        return Message(APPROVALS, run_id.encode(), json.dumps(value).encode())

    def read(self, record: Any) -> Said | None:
        value = json.loads(record.value)
        if "asks" in value:
            return Said(value["run_id"], asks=value["asks"])
        return Said(value["run_id"], output=value["output"])

    def start(self) -> None:
        self._stack.start()
        asyncio.run(_create_topics(self.bootstrap))
        port = ports.lease(None)
        env = {
            **os.environ,
            MODEL_MS_VARIABLE: str(self.model_ms),
            "BENCH_KAFKA": self.bootstrap,
            "BENCH_BACKEND_PORT": str(port),
        }
        for name in ("backend", "app"):
            ready = Path(self._folder.name) / f"{name}.ready"
            command = [sys.executable, "-m", f"{_PACKAGE}.{name}", str(ready)]
            self._children[name] = child = subprocess.Popen(command, env=env)
            deadline = time.monotonic() + _READY_S
            while not ready.exists():
                if child.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"straightforward: {name} did not start: see its output above")
                time.sleep(0.05)

    def stop(self) -> None:
        for child in reversed(self._children.values()):
            child.kill()  # nothing in it is durable: there is nothing to save
            child.wait()
        self._stack.stop()
        self._folder.cleanup()


async def _create_topics(bootstrap: str) -> None:
    admin = await connect(
        lambda: AIOKafkaAdminClient(bootstrap_servers=bootstrap),
        lambda client: client.start(),
        lambda client: client.close(),
        bootstrap=bootstrap,
        timeout_s=_READY_S,
    )
    try:
        await admin.create_topics([NewTopic(name, PARTITIONS, 1) for name in (REQUESTS, APPROVALS, SAYS)])
    finally:
        await admin.close()
