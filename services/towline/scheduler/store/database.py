"""Opening the data folder: lock, schema, connections."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import sqlite3
import tempfile
from importlib import resources
from pathlib import Path
from typing import Final

from towline.scheduler.store.errors import DamagedError, InUseError, NewerFileError, StoreError

FILE_NAME: Final = "scheduler.db"
LOCK_NAME: Final = "scheduler.lock"
APPLICATION_ID: Final = 0x544F574C
"""``TOWL``: marks the file as a scheduler's."""

_CACHE_KIB_WRITER: Final = 32_768
_CACHE_KIB_READER: Final = 8_192
_CHECKPOINT_PAGES: Final = 4_000
"""WAL pages after which a commit moves them into the file: 16 MB, a few milliseconds."""
_BUSY_MS: Final = 5_000


def migrations() -> list[str]:
    """Schema changes in order; the first makes version 1."""
    folder = resources.files("towline.scheduler.store").joinpath("migrations")
    names = sorted(entry.name for entry in folder.iterdir() if re.fullmatch(r"\d{4}_\w+\.sql", entry.name))
    return [folder.joinpath(name).read_text(encoding="utf-8") for name in names]


class FolderLock:
    """Exclusive use of a data folder. The kernel drops it with the process, however that ends."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / LOCK_NAME
        self._fd: int | None = None

    def acquire(self) -> None:
        """Take the lock.

        Raises:
            InUseError: Another process has it.
        """
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = os.read(fd, 32).decode(errors="replace").strip()
            os.close(fd)
            raise InUseError(
                f"data folder {self._path.parent} is in use by another scheduler "
                f"(process {owner or 'unknown'})"
            ) from error
        os.ftruncate(fd, 0)
        os.write(fd, str(os.getpid()).encode())
        self._fd = fd

    def release(self) -> None:
        """Give the lock back."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def open_folder(folder: Path) -> FolderLock:
    """Create the folder if need be and take its lock.

    Raises:
        InUseError: Another scheduler uses it.
        StoreError: It cannot be created or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = FolderLock(folder)
        lock.acquire()
    except OSError as error:
        raise StoreError(f"data folder {folder} cannot be used: {error.strerror or error}") from error
    return lock


def unusable(path: Path, error: sqlite3.Error) -> StoreError:
    """What SQLite's error says of the file: damaged, or only not to be used now (a full disk, say)."""
    # The library's own errors have a code; in its lowest byte, without details.
    if getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return DamagedError(f"{path} is damaged: {error} (put a backup in its place)")
    return StoreError(f"{path} cannot be used: {error}")


def connect(path: Path, *, readonly: bool = False) -> sqlite3.Connection:
    """Open a connection with the settings that durability rests on.

    Raises:
        DamagedError: The file is no database.
        StoreError: It can't be used now.
    """
    try:
        connection = sqlite3.connect(
            f"file:{path}?mode={'ro' if readonly else 'rwc'}",
            uri=True,
            isolation_level=None,
            check_same_thread=False,
            cached_statements=256,
        )
        connection.execute(f"PRAGMA busy_timeout={_BUSY_MS}")
        connection.execute("PRAGMA foreign_keys=OFF")
        if readonly:
            connection.execute("PRAGMA query_only=ON")
            connection.execute(f"PRAGMA cache_size=-{_CACHE_KIB_READER}")
        else:
            connection.execute("PRAGMA journal_mode=WAL")
            # A commit is on the disk when it returns: survives power loss, not only a killed process.
            connection.execute("PRAGMA synchronous=FULL")
            connection.execute(f"PRAGMA wal_autocheckpoint={_CHECKPOINT_PAGES}")
            connection.execute("PRAGMA journal_size_limit=67108864")
            connection.execute(f"PRAGMA cache_size=-{_CACHE_KIB_WRITER}")
            # Nothing reaches the disk before the commit, so that statements never wait for it.
            connection.execute("PRAGMA cache_spill=OFF")
    except sqlite3.DatabaseError as error:
        raise unusable(path, error) from error
    return connection


def migrate(connection: sqlite3.Connection, path: Path) -> int:
    """Bring the schema up to date.

    Returns:
        The version found before.

    Raises:
        NewerFileError: The file is of a newer version.
        DamagedError: It belongs to another program, or is broken.
        StoreError: It can't be written now.
    """
    known = migrations()
    try:
        version: int = connection.execute("PRAGMA user_version").fetchone()[0]
        application: int = connection.execute("PRAGMA application_id").fetchone()[0]
        tables: int = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if version > len(known):
            raise NewerFileError(
                f"{path} was written by a newer version "
                f"(schema {version}, this one knows {len(known)}): update towline"
            )
        if tables and application != APPLICATION_ID:
            raise DamagedError(f"{path} is not a scheduler database")
        for number, script in enumerate(known[version:], start=version + 1):
            connection.executescript(
                f"BEGIN IMMEDIATE;\n{script}\nPRAGMA application_id={APPLICATION_ID};\n"
                f"PRAGMA user_version={number};\nCOMMIT;"
            )
        _check_tables(connection, path)
    except sqlite3.DatabaseError as error:
        raise unusable(path, error) from error
    return version


def _check_tables(connection: sqlite3.Connection, path: Path) -> None:
    # Reads the root page of every table: finds a truncated or overwritten file without reading all of it.
    names = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type='table'")]
    for name in names:
        connection.execute(f"SELECT * FROM {name} LIMIT 1").fetchone()  # noqa: S608  # names come from the schema
    pages: int = connection.execute("PRAGMA page_count").fetchone()[0]
    size: int = connection.execute("PRAGMA page_size").fetchone()[0]
    wal = path.with_name(path.name + "-wal")
    if path.stat().st_size < pages * size and not (wal.exists() and wal.stat().st_size):
        raise DamagedError(f"{path} is damaged: {path.stat().st_size} bytes instead of {pages * size}")


def backup(source: Path, destination: Path) -> int:
    """Copy the database while it is in use, as of one moment.

    Returns:
        Size of the copy in bytes.

    Raises:
        StoreError: The source cannot be read or the destination exists or cannot be written.
    """
    if destination.exists() or destination.is_symlink():
        raise StoreError(f"{destination} exists already")
    if not source.exists():
        raise StoreError(f"{source} does not exist")
    try:
        fd, name = tempfile.mkstemp(prefix=f".{destination.name}.", dir=destination.parent)
        os.close(fd)
        partial = Path(name)
        try:
            with (
                contextlib.closing(connect(source, readonly=True)) as origin,
                contextlib.closing(sqlite3.connect(partial)) as copy,
            ):
                # In one step: a read transaction of the WAL never holds up the writer.
                origin.backup(copy, pages=-1)
                copy.execute("PRAGMA journal_mode=DELETE")
            _sync(partial)
            # Unlike a rename, a link never replaces what came to be there meanwhile.
            os.link(partial, destination)
        finally:
            partial.unlink()
        _sync(destination.parent)
        return destination.stat().st_size
    except FileExistsError:
        raise StoreError(f"{destination} exists already") from None
    except (OSError, sqlite3.Error) as error:
        raise StoreError(f"backup to {destination} failed: {error}") from error


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
