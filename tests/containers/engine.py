"""A Docker engine: the one that answers, else one of our own.

One of our own keeps its images and layers in the user's cache folder, so that the next session finds
them. Nothing else outlives a session: containers, networks and volumes are removed when the engine stops,
and when it starts, for a session that was killed. One session at a time has it; the others wait.

```
EngineError
└── NoEngineError   there is none and none can be started; the message says why
```
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from towline.dev.cache import cache_folder, locked
from towline.dev.errors import DistributionError

PACKAGES: Final = ("docker.io", "iptables", "ca-certificates")
START_TIMEOUT_S: Final = 60.0
STOP_TIMEOUT_S: Final = 30.0
_APT_TIMEOUT_S: Final = 240.0
_SWEEP_TIMEOUT_S: Final = 120.0
_CAPABILITIES: Final = {"CAP_NET_ADMIN": 12, "CAP_SYS_ADMIN": 21}
"""Bits of `CapEff` that dockerd needs."""


class EngineError(Exception):
    """The engine, or a command for it, failed."""


class NoEngineError(EngineError):
    """There is no engine."""


@dataclass(frozen=True)
class Engine:
    """An engine that answers."""

    host: str
    """`DOCKER_HOST`; empty for the default one."""
    is_own: bool
    """Started by us: it holds nothing of anybody else's, so its images may be named at will."""

    def environment(self) -> dict[str, str]:
        """Variables for any client of it."""
        return {**os.environ, **({"DOCKER_HOST": self.host} if self.host else {})}

    def docker(
        self,
        *arguments: str,
        timeout_s: float = 120,
        check: bool = True,
        variables: Mapping[str, str] | None = None,
    ) -> str:
        """What `docker …` prints.

        Raises:
            EngineError: It failed, or took too long.
        """
        return run(
            ["docker", *arguments],
            {**self.environment(), **(variables or {})},
            timeout_s=timeout_s,
            check=check,
        )

    def has_image(self, name: str) -> bool:
        return bool(self.docker("image", "ls", "--quiet", name))


def run(
    command: Sequence[str],
    environment: Mapping[str, str],
    *,
    timeout_s: float,
    check: bool = True,
    folder: Path | None = None,
) -> str:
    """Output of a command, standard error included.

    Raises:
        EngineError: It failed, or took too long.
    """
    try:
        done = subprocess.run(
            command,
            env=dict(environment),
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise EngineError(f"{' '.join(command[:4])} …: no end after {timeout_s:g} s") from error
    if check and done.returncode != 0:
        raise EngineError(f"{' '.join(command)}: status {done.returncode}: {done.stdout[-3000:]}")
    return done.stdout.strip()


def why_none_can_be_started() -> str | None:
    """What this machine lacks for an engine of our own; None if one can be started. Asks nobody."""
    if sys.platform != "linux":
        return "the container tests run on Linux"
    if os.geteuid() != 0:
        return "no Docker engine answers; as root the tests would start one"
    found = re.search(r"^CapEff:\s*([0-9a-f]+)$", Path("/proc/self/status").read_text(), re.MULTILINE)
    effective = int(found.group(1), 16) if found else 0
    if lacking := [name for name, bit in _CAPABILITIES.items() if not effective & (1 << bit)]:
        return f"no Docker engine answers, and none can be started without {', '.join(lacking)}"
    return None


@contextmanager
def running_engine(folder: Path) -> Generator[Engine]:
    """An engine; if it had to be started, it is stopped at the end, and holds nothing but images.

    Raises:
        NoEngineError: There is none and none can be started.
    """
    if shutil.which("docker") and answers(""):
        yield Engine(os.environ.get("DOCKER_HOST", ""), is_own=False)
        return
    if (reason := why_none_can_be_started()) is not None:
        raise NoEngineError(reason)
    if not (shutil.which("dockerd") and shutil.which("docker")):
        _install()
    with ExitStack() as exits:
        try:
            exits.enter_context(locked(cache_folder() / "containers-engine.lock"))
        except DistributionError as error:
            raise NoEngineError(f"another session's engine does not stop: {error}") from error
        yield exits.enter_context(_daemon(folder, cache_folder() / "containers-engine"))


def answers(host: str) -> bool:
    """Whether an engine answers there."""
    environment = {**os.environ, **({"DOCKER_HOST": host} if host else {})}
    try:
        run(["docker", "version", "--format", "{{.Server.Version}}"], environment, timeout_s=20)
    except EngineError:
        return False
    return True


def _install() -> None:
    if not (os.environ.get("CI") or os.environ.get("TOWLINE_TEST_INSTALL_DOCKER")):
        raise NoEngineError(
            "no Docker engine: apt-get install docker.io, or set TOWLINE_TEST_INSTALL_DOCKER=1"
        )
    if shutil.which("apt-get") is None:
        raise NoEngineError("no Docker engine, and no apt-get to install docker.io with")
    apt_install(*PACKAGES)


def apt_install(*packages: str) -> None:
    """Install packages of Debian or Ubuntu; starts no service.

    Raises:
        NoEngineError: That failed.
    """
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    try:
        run(["apt-get", "update", "-qq"], environment, timeout_s=_APT_TIMEOUT_S)
        run(
            ["apt-get", "install", "-qq", "--yes", "--no-install-recommends", *packages],
            environment,
            timeout_s=_APT_TIMEOUT_S,
        )
    except EngineError as error:
        raise NoEngineError(f"{', '.join(packages)} could not be installed: {error}") from error


@contextmanager
def _daemon(folder: Path, data: Path) -> Generator[Engine]:
    """A `dockerd` of our own on a socket in `folder`; published ports are on loopback only."""
    folder.mkdir(parents=True)
    engine = Engine(f"unix://{folder}/docker.sock", is_own=True)
    log = folder / "dockerd.log"
    with log.open("w") as output:
        daemon = subprocess.Popen(
            [
                # It stops, and stops its containers, also if this process is killed.
                *("setpriv", "--pdeathsig", "TERM", "dockerd"),
                *("--ip", "127.0.0.1", "--log-level", "warn", "--host", engine.host),
                *("--data-root", str(data), "--exec-root", str(folder / "exec")),
                *("--pidfile", str(folder / "pid")),
            ],
            stdout=output,
            stderr=output,
        )
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not answers(engine.host):
            if daemon.poll() is not None or time.monotonic() > deadline:
                raise NoEngineError(
                    f"dockerd does not start: {' | '.join(log.read_text().splitlines()[-3:])}"
                )
            time.sleep(0.2)  # between two questions
        _sweep(engine)
        yield engine
        _sweep(engine)
    finally:
        daemon.terminate()
        try:
            daemon.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()
        # dockerd leaves its own network's name space mounted.
        space = folder / "exec" / "netns" / "default"
        subprocess.run(["umount", str(space)], capture_output=True, check=False)
        shutil.rmtree(folder, ignore_errors=True)


def _sweep(engine: Engine) -> None:
    """Remove everything but tagged images and the layers that they are made of."""
    if left := engine.docker("ps", "--all", "--quiet").split():
        engine.docker("rm", "--force", "--volumes", *left, timeout_s=_SWEEP_TIMEOUT_S)
    if volumes := engine.docker("volume", "ls", "--quiet").split():
        engine.docker("volume", "rm", "--force", *volumes, timeout_s=_SWEEP_TIMEOUT_S)
    for kind in ("network", "image"):
        engine.docker(kind, "prune", "--force", timeout_s=_SWEEP_TIMEOUT_S)
