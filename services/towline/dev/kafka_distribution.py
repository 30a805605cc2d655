"""Kafka's jars, fetched once by Maven into the user's cache, and what makes a broker start quickly.

```
kafka-4.4.0/libs/*.jar        complete as soon as the folder exists (made elsewhere, then renamed)
kafka-4.4.0/formatted/        a formatted, empty data folder to copy: saves a JVM start per broker
kafka-4.4.0/<java>.jsa        class data archive of one Java: 0.6 s to ready instead of 1.0
kafka-4.4.0.lock              held while any of these is made
```
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from uuid import uuid4

from towline.dev.cache import cache_folder, locked
from towline.dev.errors import DistributionError, MissingToolError
from towline.dev.kafka_config import JVM_OPTIONS, kafka_uuid, server_properties
from towline.dev.process import Child

logger = logging.getLogger(__name__)

KAFKA_VERSION: Final = "4.4.0"
JAVA_MAJOR_MIN: Final = 17
MAVEN_TIMEOUT_S: Final = 600.0
_FORMAT_TIMEOUT_S: Final = 60.0
_WORK: Final = "work-"
"""Folders of this prefix are only meaningful to the holder of the lock."""
_POM: Final = Path(__file__).with_name("kafka_pom.xml")
_JAVA_FIX: Final = (
    "install Java 17 or newer (Debian, Ubuntu: apt-get install openjdk-17-jre-headless; "
    "macOS: brew install openjdk), or set TOWLINE_KAFKA_BOOTSTRAP to a broker that you have"
)
_MAVEN_FIX: Final = (
    "install it (Debian, Ubuntu: apt-get install maven; macOS: brew install maven), "
    "or set TOWLINE_KAFKA_BOOTSTRAP to a broker that you have"
)


@dataclass(frozen=True, slots=True)
class KafkaDistribution:
    """A Kafka that can be started."""

    java: Path
    libs: Path
    formatted: Path
    """A formatted data folder to copy."""
    archive: Path
    """Class data archive; need not exist."""

    def command(self, main: str, *arguments: str, jvm: tuple[str, ...] = ()) -> list[str]:
        """The command line that runs Kafka's class `main`."""
        # Explicit and sorted: an archive is only used with the class path that it was made with.
        class_path = ":".join(str(jar) for jar in sorted(self.libs.glob("*.jar")))
        return [str(self.java), *JVM_OPTIONS, *jvm, "-cp", class_path, main, *arguments]

    def server_command(self, properties: Path, *, jvm: tuple[str, ...] = ()) -> list[str]:
        """The command line of a broker."""
        if self.archive.exists():
            jvm = (f"-XX:SharedArchiveFile={self.archive}", "-Xshare:auto", *jvm)
        return self.command("kafka.Kafka", str(properties), jvm=jvm)


def resolve(make_archive: Callable[[KafkaDistribution, Path], None] | None = None) -> KafkaDistribution:
    """The distribution in the cache; fetched and prepared first if need be.

    Safe against any number of processes that do so at once. The first time takes some seconds for
    the download (Maven's own cache helps) and three for the archive.

    Args:
        make_archive: Writes the class data archive, given an empty folder to work in, if there is none.
            A failure of its costs speed only.

    Raises:
        MissingToolError: No Java, or no Maven to fetch the jars with.
        DistributionError: Maven failed, or Java is too old.
    """
    java = find_java()
    folder = cache_folder() / f"kafka-{KAFKA_VERSION}"
    found = KafkaDistribution(
        java, folder / "libs", folder / "formatted", folder / f"{_java_fingerprint(java)}.jsa"
    )
    if found.libs.is_dir() and found.formatted.is_dir() and (make_archive is None or found.archive.exists()):
        return found
    with locked(folder.with_name(f"{folder.name}.lock")):
        folder.mkdir(parents=True, exist_ok=True)
        for cut_short in folder.glob(f"{_WORK}*"):
            shutil.rmtree(cut_short, ignore_errors=True)
        if not found.libs.is_dir():
            _fetch_jars(found.libs)
        if not found.formatted.is_dir():
            _format(found)
        if make_archive is not None and not found.archive.exists():
            logger.info("kafka.archiving_classes", extra={"archive": str(found.archive)})
            with tempfile.TemporaryDirectory(prefix=_WORK, dir=folder) as work:
                make_archive(found, Path(work))
    return found


def find_java() -> Path:
    """The Java to use: of ``JAVA_HOME``, else on the path.

    Raises:
        MissingToolError: There is none.
        DistributionError: It is too old for Kafka.
    """
    home = os.environ.get("JAVA_HOME")
    candidate = shutil.which("java", path=str(Path(home) / "bin")) if home else None
    found = candidate or shutil.which("java")
    if found is None:
        raise MissingToolError("Java", needed_for="Kafka runs on it", fix=_JAVA_FIX)
    java = Path(found).resolve()
    release = java.parents[1] / "release"
    version = re.search(r'JAVA_VERSION="(\d+)', release.read_text()) if release.is_file() else None
    if version is not None and int(version[1]) < JAVA_MAJOR_MIN:
        raise DistributionError(f"Java {version[1]} ({java}) is too old for Kafka: {_JAVA_FIX}")
    return java


def _java_fingerprint(java: Path) -> str:
    modules = java.parents[1] / "lib" / "modules"
    about = modules.stat() if modules.exists() else java.stat()
    return hashlib.sha256(f"{java}|{about.st_size}|{about.st_mtime_ns}".encode()).hexdigest()[:16]


def _fetch_jars(libs: Path) -> None:
    maven = shutil.which("mvn")
    if maven is None:
        raise MissingToolError("Maven", needed_for="it fetches Kafka's jars", fix=_MAVEN_FIX)
    logger.info("kafka.fetching", extra={"version": KAFKA_VERSION, "into": str(libs)})
    with tempfile.TemporaryDirectory(prefix=_WORK, dir=libs.parent) as work:
        pom = Path(work) / "pom.xml"
        shutil.copyfile(_POM, pom)
        command = [maven, "-B", "-q", "-ntp", "-f", str(pom), f"-Dkafka.version={KAFKA_VERSION}"]
        _run(
            [*command, "dependency:copy-dependencies"], "Maven could not fetch Kafka's jars", MAVEN_TIMEOUT_S
        )
        (Path(work) / "libs").rename(libs)


def _format(distribution: KafkaDistribution) -> None:
    with tempfile.TemporaryDirectory(prefix=_WORK, dir=distribution.libs.parent) as work:
        properties, log_dir = Path(work) / "server.properties", Path(work) / "data"
        # As `KafkaPart.work_folder` says.
        properties.write_text(
            server_properties(port=9092, controller_port=9093, log_dir=log_dir.relative_to(work))
        )
        command = distribution.command(
            "kafka.tools.StorageTool",
            *("format", "-t", kafka_uuid(uuid4()), "-c", str(properties)),
        )
        _run(command, "Kafka's data folder could not be formatted", _FORMAT_TIMEOUT_S, cwd=Path(work))
        log_dir.rename(distribution.formatted)


def _run(command: list[str], failure: str, timeout_s: float, *, cwd: Path | None = None) -> None:
    child = Child("kafka", command, cwd=cwd)
    status = child.wait(timeout_s)
    if status is None:
        child.kill()
    child.stop()
    if status is None:
        raise DistributionError(f"{failure}: no end after {timeout_s:g} s")
    if status != 0:
        lines = [line for line in child.last_lines if line.strip()]
        raise DistributionError(f"{failure}: {' | '.join(lines[:3]) or f'status {status}'}")
