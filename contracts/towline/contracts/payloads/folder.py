"""Payloads in a folder that all processes share: for one machine, or on a shared volume."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

from towline.contracts.errors import PayloadStoreAwayError

_T = TypeVar("_T")
_SUFFIX: Final = ".gz"
_UNFINISHED: Final = ".new-"
_OURS: Final = re.compile(rf"[0-9a-f]{{64}}{re.escape(_SUFFIX)}|{re.escape(_UNFINISHED)}.*", re.ASCII)


class FolderBackend:
    """One file a payload, ``<first two digits>/<digits>.gz``, readable by the owner only.

    Args:
        root: The folder; made if it is not there.
        retention_s: Files that were neither written nor read for so long are deleted.
    """

    def __init__(self, root: Path, *, retention_s: float) -> None:
        self._root = root
        self._retention_s = retention_s

    @property
    def place(self) -> str:
        """The folder."""
        return str(self._root)

    async def write(self, name: str, stored: bytes) -> None:
        """See `Backend`."""
        await self._in_thread(lambda: self._write(name, stored))

    async def read(self, name: str) -> bytes | None:
        """See `Backend`. What is read counts as new."""
        return await self._in_thread(lambda: self._read(name))

    async def sweep(self) -> int:
        """See `Backend`."""
        return await self._in_thread(self._sweep)

    async def close(self) -> None:
        """Nothing is open."""

    def _write(self, name: str, stored: bytes) -> None:
        path = self._root / _within(name)
        # Not its parents: a volume that is not mounted must not be written past.
        path.parent.mkdir(mode=0o700, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_size == len(stored):
                os.utime(path)
                return
        # Whoever follows a reference after a power cut must find all of it: file, then its name.
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=_UNFINISHED, delete=False) as new:
            try:
                new.write(stored)
                new.flush()
                os.fsync(new.fileno())
                Path(new.name).replace(path)
            except BaseException:
                Path(new.name).unlink(missing_ok=True)
                raise
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _read(self, name: str) -> bytes | None:
        # The folder first, and the file in that very folder: while a volume comes and goes, a look at one and
        # then at the other may find a payload gone that is not.
        folder = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            file = os.open(_within(name), os.O_RDONLY, dir_fd=folder)
        except FileNotFoundError:
            return None
        finally:
            os.close(folder)
        with open(file, "rb") as opened:
            stored = opened.read()
            with contextlib.suppress(OSError):
                os.utime(file)
        return stored

    def _sweep(self) -> int:
        oldest = time.time() - self._retention_s
        count = 0
        # What else is below the folder is somebody's: it may have been given whole, a database beside it.
        for path in self._root.glob("[0-9a-f][0-9a-f]/*"):
            if not _OURS.fullmatch(path.name):
                continue
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime < oldest:
                    path.unlink()
                    count += 1
        return count

    async def _in_thread(self, work: Callable[[], _T]) -> _T:
        try:
            return await asyncio.to_thread(work)
        except OSError as error:
            raise PayloadStoreAwayError(
                f"the payload store at {self._root} does not work: {error}"
            ) from error


def _within(name: str) -> str:
    """Where a payload is in the folder."""
    return f"{name[:2]}/{name}{_SUFFIX}"
