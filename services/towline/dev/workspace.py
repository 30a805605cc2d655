"""The data folder of one `towline dev`: its lock, the ports of last time, the file with the addresses."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import tempfile
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final, cast

from towline.dev.errors import AlreadyRunningError, UnusablePathError
from towline.dev.process import PidFile

_HIGHEST_PORT: Final = 65_535
_TEMPORARY: Final = "towline-dev-"
_TEMPORARY_AGE_S: Final = 60.0
"""A younger folder may be one whose owner has not locked it yet."""


class Workspace:
    """An open data folder; nobody else has it open."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def stop_leftovers(self) -> list[str]:
        """Stop the parts that an earlier, killed owner left. Their names."""
        files = sorted(self.path.glob("*/pid"))
        return [file.parent.name for file in files if PidFile(file).stop_leftover() is not None]

    def last_ports(self) -> dict[str, int]:
        """Ports of the last stack on this folder, by part; what is none is left out."""
        try:
            recorded: object = json.loads(self._ports_file.read_text())
        except (OSError, ValueError):
            return {}
        if not isinstance(recorded, dict):
            return {}
        found = cast("dict[str, Any]", recorded).items()
        return {name: port for name, port in found if type(port) is int and 0 < port <= _HIGHEST_PORT}

    def remember_ports(self, ports: Mapping[str, int]) -> None:
        """Record the ports for the next stack on this folder."""
        write_atomically(self._ports_file, json.dumps(dict(ports)))

    @property
    def _ports_file(self) -> Path:
        return self.path / "ports.json"


@contextmanager
def open_workspace(data: Path | None) -> Generator[Workspace]:
    """Open `data`, or a temporary folder that is removed at the end.

    Raises:
        AlreadyRunningError: Another process has it open.
        UnusablePathError: It cannot be made, or not be written.
    """
    if data is not None:
        try:
            data.mkdir(parents=True, exist_ok=True)
            check_writable(data)
        except OSError as error:
            raise UnusablePathError("--data", data, error) from None
        with _locked(data.absolute()):
            yield Workspace(data.absolute())
        return
    _remove_abandoned()
    folder = Path(tempfile.mkdtemp(prefix=_TEMPORARY))
    try:
        with _locked(folder):
            yield Workspace(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def check_writable(folder: Path) -> None:
    """Make and remove a file in `folder`.

    Raises:
        OSError: It cannot be done.
    """
    with tempfile.TemporaryFile(dir=folder):
        pass


def write_atomically(path: Path, text: str) -> None:
    """Write `text` so that a reader sees all of it or the old file; readable by the owner only."""
    with tempfile.NamedTemporaryFile(
        "w", dir=path.absolute().parent, prefix=f".{path.name}.", delete=False, encoding="utf-8"
    ) as new:
        new.write(text)
    Path(new.name).replace(path)


def env_lines(addresses: Mapping[str, str]) -> str:
    """`addresses` as ``NAME=value`` lines, for ``docker --env-file``, dotenv and ``set -a; . FILE``.

    Raises:
        ValueError: A value that these readers would not read alike. It is not shown: it may hold a password.
    """
    for name, value in addresses.items():
        if any(character in value for character in "\n\r'\"`$\\ "):
            raise ValueError(
                f"{name} holds a quote, blank, $, ` or \\, which an env file cannot carry: "
                "write it in a URL as %24 and so on, or leave --env-file out"
            )
    return "".join(f"{name}={value}\n" for name, value in sorted(addresses.items()))


def _remove_abandoned() -> None:
    """Clear away temporary folders whose owner was killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_TEMPORARY}*"):
        with contextlib.suppress(OSError, AlreadyRunningError):
            about = folder.stat()
            if about.st_uid != os.getuid() or time.time() - about.st_mtime < _TEMPORARY_AGE_S:
                continue
            with _locked(folder):
                Workspace(folder).stop_leftovers()
                shutil.rmtree(folder)


@contextmanager
def _locked(folder: Path) -> Generator[IO[bytes]]:
    with (folder / "lock").open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise AlreadyRunningError(folder) from None
        yield lock
