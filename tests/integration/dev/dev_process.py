"""A `towline dev` process for tests, and what is left of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.waiting import eventually

from towline.contracts.settings import KafkaSettings
from towline.dev.process import PidFile, start_time
from towline.dev.stack import ADDRESS_VARIABLES

ROOT = Path(__file__).parents[3]
READY_S = 150.0
APP = "examples.human_in_the_loop.app:setup_worker"


class DevProcess:
    """``towline dev`` with a data folder and an env file, its output in a file."""

    def __init__(self, folder: Path, *, app: str = APP, environment: Mapping[str, str] | None = None) -> None:
        self.data = folder / "data"
        self.env_file = folder / "addresses.env"
        self.output = folder / "output.log"
        self._app = app
        inherited = {name: value for name, value in os.environ.items() if name not in ADDRESS_VARIABLES}
        self._environment = {**inherited, **(environment or {})}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def launch(self) -> subprocess.Popen[bytes]:
        self.output.parent.mkdir(parents=True, exist_ok=True)
        options = ("--data", str(self.data), "--env-file", str(self.env_file), "--free-ports")
        with self.output.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "towline.cli", "dev", "--app", self._app, *options],
                cwd=ROOT,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        return self._process

    def start(self) -> Self:
        process = self.launch()
        eventually(
            lambda: self.env_file.exists() or process.poll() is not None,
            f"ready; its output:\n{self.text[-4000:]}",
            timeout_s=READY_S,
        )
        assert process.poll() is None, self.text
        return self

    @property
    def text(self) -> str:
        return self.output.read_text(errors="replace") if self.output.exists() else ""

    @property
    def addresses(self) -> dict[str, str]:
        return dict(line.split("=", 1) for line in self.env_file.read_text().splitlines())

    @property
    def kafka(self) -> KafkaSettings:
        prefix = self._environment.get("TOWLINE_KAFKA_TOPIC_PREFIX", "towline.")
        return KafkaSettings(bootstrap=self.addresses["TOWLINE_KAFKA_BOOTSTRAP"], topic_prefix=prefix)

    def part(self, name: str) -> int | None:
        """The living process of a part."""
        return PidFile(self.data / name / "pid").living()

    @property
    def parts(self) -> dict[str, int]:
        names = [folder.name for folder in self.data.iterdir() if folder.is_dir()]
        return {name: pid for name in names if (pid := self.part(name)) is not None}

    def kill(self) -> None:
        """SIGKILL to `towline dev` alone."""
        os.kill(self.pid, signal.SIGKILL)
        self._wait(5)

    def stop(self, timeout_s: float = 30.0) -> int:
        """SIGTERM to `towline dev` alone; its exit status."""
        assert self._process is not None
        if self._process.poll() is None:
            os.kill(self.pid, signal.SIGTERM)
        return self._wait(timeout_s)

    def _wait(self, timeout_s: float) -> int:
        assert self._process is not None
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def alive(pids: Mapping[str, int]) -> list[str]:
    """Which of these processes still run."""
    return [name for name, pid in pids.items() if start_time(pid) is not None]


def processes_that_mention(text: str) -> list[str]:
    """Command lines of all processes that hold `text`."""
    found: list[str] = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = file.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if text in line:
            found.append(line)
    return found
