"""docker-compose.yml as a project of a test's own, and the compose plugin where a machine has none."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.containers.engine import Engine, EngineError, NoEngineError, run

from towline.dev.cache import cache_folder, locked

ROOT: Final = Path(__file__).parents[2]
_MODULE: Final = "github.com/docker/compose/v5"
_VERSION: Final = "v5.6.0"
_BUILD_TIMEOUT_S: Final = 600.0
_ALL_PROFILES: Final = ("--profile", "*")


def compose_command() -> list[str]:
    """The installed plugin, else one built by Go and cached.

    Raises:
        NoEngineError: There is neither.
    """
    try:
        run(["docker", "compose", "version"], os.environ, timeout_s=30)
        return ["docker", "compose"]
    except (EngineError, FileNotFoundError):
        return [str(_built())]


def _built() -> Path:
    go = shutil.which("go")
    binary = cache_folder() / f"docker-compose-{_VERSION}"
    with locked(binary.with_suffix(".lock")):
        if binary.exists():
            return binary
        if go is None:
            raise NoEngineError("docker compose is not installed, and there is no Go to build it with")
        source = cache_folder() / f"docker-compose-source-{hashlib.sha256(_VERSION.encode()).hexdigest()[:8]}"
        shutil.rmtree(source, ignore_errors=True)
        source.mkdir()
        partial = binary.with_suffix(".partial")
        version = f"-X {_MODULE}/internal.Version={_VERSION}"
        environment = {**os.environ, "CGO_ENABLED": "0"}
        try:
            for command in (
                [go, "mod", "init", "towline.test/compose"],
                [go, "get", "-tool", f"{_MODULE}/cmd@{_VERSION}"],
                [go, "build", "-trimpath", f"-ldflags=-s -w {version}", "-o", str(partial), f"{_MODULE}/cmd"],
            ):
                run(command, environment, timeout_s=_BUILD_TIMEOUT_S, folder=source)
        except EngineError as error:
            raise NoEngineError(f"docker compose is not installed and cannot be built: {error}") from error
        finally:
            shutil.rmtree(source, ignore_errors=True)
        partial.replace(binary)
    return binary


@dataclass
class Project:
    """The services of docker-compose.yml under a project name of their own."""

    engine: Engine
    command: list[str]
    name: str
    variables: dict[str, str] = field(default_factory=dict[str, str])
    """For the file's `${…}`."""

    def compose(self, *arguments: str, timeout_s: float = 120, profiles: tuple[str, ...] = ()) -> str:
        """What `docker compose …` prints.

        Raises:
            EngineError: It failed, or took too long.
        """
        chosen = [word for profile in profiles for word in ("--profile", profile)]
        return run(
            [*self.command, "--project-name", self.name, "--ansi", "never", *chosen, *arguments],
            {**self.engine.environment(), **self.variables, "COMPOSE_MENU": "0"},
            timeout_s=timeout_s,
            folder=ROOT,
        )

    def up(self, *services: str, profiles: tuple[str, ...] = (), wait_s: int = 480) -> str:
        """Start and wait until all is healthy; on failure the error holds the logs."""
        try:
            return self.compose(
                *("up", "--detach", "--no-build", "--wait", "--wait-timeout", str(wait_s), *services),
                timeout_s=wait_s + 60,
                profiles=profiles,
            )
        except EngineError as error:
            raise EngineError(
                f"{error}\n{self.compose(*_ALL_PROFILES, 'ps', '--all')}\n{self.logs()[-6000:]}"
            ) from error

    def logs(self, *services: str, lines: int = 80) -> str:
        """The newest lines of each service."""
        return self.compose(*_ALL_PROFILES, "logs", "--no-color", "--tail", str(lines), *services)

    def services(self) -> dict[str, dict[str, Any]]:
        """Containers by service, stopped ones too."""
        listed = self.compose(*_ALL_PROFILES, "ps", "--all", "--format", "json")
        return {row["Service"]: row for row in map(json.loads, listed.splitlines()) if row}

    def inspect(self, service: str) -> dict[str, Any]:
        """`docker inspect` of a service's container."""
        return json.loads(self.engine.docker("inspect", self.services()[service]["ID"]))[0]

    def down(self) -> None:
        self.compose(*_ALL_PROFILES, "down", "--volumes", "--remove-orphans", "--timeout", "20")

    def left(self) -> list[str]:
        """Ids and names of what the project still has: containers, networks, volumes."""
        label = f"label=com.docker.compose.project={self.name}"
        return [
            found
            for kind in (("ps", "--all"), ("network", "ls"), ("volume", "ls"))
            for found in self.engine.docker(*kind, "--quiet", "--filter", label).split()
        ]
