"""What the systems that are not Towline have in common: JSON on own topics, own processes."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import tempfile
import time
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final
from urllib import error, request

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from benchmarks.end_to_end import installed
from benchmarks.end_to_end.systems.base import PARTITIONS, Kind, Message, Said, StartError, System

from towline.contracts.kafka import connect

_READY_S: Final = 60.0
_STOP_S: Final = 10.0
_LOG_SHOWN: Final = 2_000


class Peer(System):
    """Reads ``bench.NAME.answer``, ``.approved_answer`` and ``.decisions``, and writes ``.says``."""

    apps: ClassVar[int] = 1
    """Processes of the app, which runs the user's Python."""

    def __init__(self, bootstrap: str, *, tag: str = "") -> None:
        super().__init__(bootstrap, tag=tag)
        self._folder = tempfile.TemporaryDirectory(prefix=f"towline-bench-{self.name}-")
        self.data = Path(self._folder.name)
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def topics(self) -> str:
        """What the names of its topics begin with."""
        return f"{self.tag}bench.{self.name}"

    @property
    def listens(self) -> Sequence[str]:
        return (f"{self.topics}.says",)

    @property
    def processes(self) -> Mapping[str, int]:
        return {name: child.pid for name, child in self._children.items()}

    def request(self, run_id: str, kind: Kind, message: str) -> Message:
        value = {"run_id": run_id, "message": message}
        return Message(f"{self.topics}.{kind}", run_id.encode(), json.dumps(value).encode())

    def decide(self, run_id: str, approval: str) -> Message:
        value = {"run_id": run_id, "approval": approval, "approved": True}
        return Message(f"{self.topics}.decisions", run_id.encode(), json.dumps(value).encode())

    def read(self, record: Any) -> Said | None:
        value = json.loads(record.value)
        if "asks" in value:
            return Said(value["run_id"], asks=value["asks"])
        return Said(value["run_id"], output=value["output"])

    def start(self) -> None:
        try:
            asyncio.run(self._create_topics())
            self.launch()
        except BaseException:
            self.stop()
            raise

    @abstractmethod
    def launch(self) -> None:
        """Start its processes by `spawn`, in order."""

    @property
    def app_names(self) -> Sequence[str]:
        """One for each process of the app."""
        return ("app",) if self.apps == 1 else [f"app {number}" for number in range(1, self.apps + 1)]

    def spawn(
        self,
        name: str,
        command: Sequence[str | Path],
        *,
        ready: Callable[[], bool],
        env: Mapping[str, str] | None = None,
        user: str | None = None,
    ) -> None:
        """Start a process and wait until it serves.

        Raises:
            StartError: It ended, or did not serve within a minute; with the end of its output.
        """
        log = self.data / f"{name}.output"
        with log.open("wb") as output:
            child = subprocess.Popen(
                [str(part) for part in command],
                env={**os.environ, "BENCH_KAFKA": self.bootstrap, "BENCH_TOPICS": self.topics, **(env or {})},
                cwd=self.data,
                stdout=output,
                stderr=subprocess.STDOUT,
                user=user,
            )
        self._children[name] = child
        deadline = time.monotonic() + _READY_S
        while not ready():
            if child.poll() is not None or time.monotonic() > deadline:
                said = log.read_text(errors="replace")[-_LOG_SHOWN:]
                raise StartError(f"{self.name}: {name} did not start; it said: {said}")
            time.sleep(0.05)

    def spawn_app(
        self, name: str, module: str, *, python: str | Path, env: Mapping[str, str] | None = None
    ) -> None:
        """Start a module of `benchmarks.end_to_end.peers`, which says that it serves by a file."""
        ready = self.data / f"{name}.ready"
        self.spawn(
            name,
            [python, "-m", f"benchmarks.end_to_end.peers.{module}", ready],
            ready=ready.exists,
            env={**installed.python_environment(), **(env or {})},
        )

    def stop(self) -> None:
        for child in reversed(self._children.values()):
            child.terminate()
            try:
                child.wait(_STOP_S)
            except subprocess.TimeoutExpired:  # its data are deleted anyway
                child.kill()
                child.wait()
        self._folder.cleanup()

    async def _create_topics(self) -> None:
        admin = await connect(
            lambda: AIOKafkaAdminClient(bootstrap_servers=self.bootstrap),
            lambda client: client.start(),
            lambda client: client.close(),
            bootstrap=self.bootstrap,
            timeout_s=_READY_S,
        )
        names = ("answer", "approved_answer", "decisions", "says")
        try:
            await admin.create_topics([NewTopic(f"{self.topics}.{name}", PARTITIONS, 1) for name in names])
        finally:
            await admin.close()


def http_ok(url: str) -> bool:
    """Whether GET answers 2xx."""
    try:
        with request.urlopen(url, timeout=1.0) as answer:
            return 200 <= answer.status < 300
    except (error.URLError, OSError):
        return False


def post_json(url: str, body: Mapping[str, Any]) -> None:
    """POST.

    Raises:
        StartError: Refused; with what the server said.
    """
    asked = request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    try:
        with request.urlopen(asked, timeout=_READY_S):
            return
    except error.HTTPError as refused:
        raise StartError(f"POST {url}: {refused.code} {refused.read().decode(errors='replace')}") from refused
