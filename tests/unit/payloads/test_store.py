"""The payload store: names by content, verified, bounded; the folder; what a URL may be."""

from __future__ import annotations

import contextlib
import os
import threading
import time
import zlib
from pathlib import Path

import pytest
from pydantic import SecretStr

from towline.contracts.errors import (
    PayloadMissingError,
    PayloadSettingsError,
    PayloadStoreAwayError,
    PayloadTooLargeError,
)
from towline.contracts.payloads import PayloadReference, PayloadStore, open_payload_store
from towline.contracts.payloads.folder import FolderBackend
from towline.contracts.settings import PayloadSettings

DATA = b'{"text": "' + b"a lot " * 1000 + b'"}'


def folder_store(root: Path, *, cache_bytes: int = 0, max_bytes: int = 10_000_000) -> PayloadStore:
    root.mkdir(exist_ok=True)
    return PayloadStore(FolderBackend(root, retention_s=3600), max_bytes=max_bytes, cache_bytes=cache_bytes)


def make_older(root: Path, *, by_s: float) -> None:
    for file in root.glob("*/*"):
        os.utime(file, (0, time.time() - by_s))


async def test_what_was_put_in_comes_out_equal_and_the_same_data_has_one_name(tmp_path: Path) -> None:
    store = folder_store(tmp_path / "p")
    first, second = await store.put(DATA), await store.put(DATA)
    assert first == second
    assert await store.get(first) == DATA
    [file] = (tmp_path / "p").glob("*/*")
    assert zlib.decompress(file.read_bytes(), wbits=31) == DATA
    assert file.stat().st_mode & 0o077 == 0, "others may not read it"


@pytest.mark.parametrize(
    "text",
    [
        "file:///etc/passwd",
        "http://127.0.0.1/x",
        "towline-payload:sha256:../../etc/passwd:12",
        f"towline-payload:sha256:{'A' * 64}:1",
        f"towline-payload:sha256:{'a' * 64}:-1",
        f"towline-payload:sha256:{'a' * 64}:1\n",
        f" towline-payload:sha256:{'a' * 64}:1",
        f"towline-payload:sha256:{'a' * 63}\u0661:1",
        f"towline-payload:sha256:{'a' * 64}:{'9' * 40}",
        f'"towline-payload:sha256:{"a" * 64}:1"',
    ],
)
def test_only_a_reference_by_content_is_one(text: str) -> None:
    assert PayloadReference.parse(text) is None


async def test_a_damaged_or_exchanged_payload_is_missing_not_served(tmp_path: Path) -> None:
    store = folder_store(tmp_path / "p")
    reference = await store.put(DATA)
    [file] = (tmp_path / "p").glob("*/*")
    for stored in (b"", b"no gzip", zlib.compress(b"x" * len(DATA), wbits=31), file.read_bytes()[:-9]):
        file.write_bytes(stored)
        with pytest.raises(PayloadMissingError, match="other data"):
            await store.get(reference)


async def test_a_payload_that_unpacks_to_more_than_its_reference_says_is_not_unpacked(tmp_path: Path) -> None:
    store = folder_store(tmp_path / "p")
    reference = await store.put(b"small")
    [file] = (tmp_path / "p").glob("*/*")
    file.write_bytes(zlib.compress(b"\0" * 200_000_000, wbits=31))
    with pytest.raises(PayloadMissingError):
        await store.get(reference)


async def test_size_is_bounded_on_the_way_in_and_out(tmp_path: Path) -> None:
    store = folder_store(tmp_path / "p", max_bytes=100)
    with pytest.raises(PayloadTooLargeError, match="TOWLINE_PAYLOADS_MAX_BYTES"):
        await store.put(DATA)
    with pytest.raises(PayloadMissingError, match="TOWLINE_PAYLOADS_MAX_BYTES"):
        await store.get(PayloadReference.of(DATA))


async def test_the_cache_keeps_what_was_used_last_within_its_bound(tmp_path: Path) -> None:
    store = folder_store(tmp_path / "p", cache_bytes=2_500)
    references = [await store.put(bytes([number]) * 1_000) for number in range(4)]
    for file in (tmp_path / "p").glob("*/*"):
        file.unlink()
    assert await store.get(references[3]) == b"\3" * 1_000
    assert await store.get(references[2]) == b"\2" * 1_000
    for forgotten in references[:2]:
        with pytest.raises(PayloadMissingError):
            await store.get(forgotten)
    assert store._cached_bytes <= 2_500


async def test_a_folder_that_is_not_there_is_away_a_file_that_is_not_there_is_missing(tmp_path: Path) -> None:
    store = folder_store(tmp_path / "p")
    reference = PayloadReference.of(DATA)
    with pytest.raises(PayloadMissingError, match="TOWLINE_PAYLOADS_RETENTION_S"):
        await store.get(reference)
    (tmp_path / "p").rmdir()
    with pytest.raises(PayloadStoreAwayError):
        await store.get(reference)


async def test_a_folder_that_comes_and_goes_loses_no_payload(tmp_path: Path) -> None:
    root, aside = tmp_path / "p", tmp_path / "aside"
    store = folder_store(root)
    reference = await store.put(DATA)
    over = threading.Event()

    def come_and_go() -> None:
        while not over.is_set():
            root.rename(aside)
            aside.rename(root)

    flapping = threading.Thread(target=come_and_go)
    flapping.start()
    try:
        for _ in range(3_000):
            # Away or there, and never missing.
            with contextlib.suppress(PayloadStoreAwayError):
                assert await store.get(reference) == DATA
    finally:
        over.set()
        flapping.join()


async def test_old_payloads_are_swept_and_used_ones_are_kept(tmp_path: Path) -> None:
    backend = FolderBackend(tmp_path, retention_s=100)
    store = PayloadStore(backend, max_bytes=10_000)
    old, used, again = [await store.put(text) for text in (b"old", b"used", b"again")]
    make_older(tmp_path, by_s=200)
    await store.get(used)
    await store.put(b"again")
    assert await backend.sweep() == 1
    assert await store.get(used) == b"used"
    assert await store.get(again) == b"again"
    with pytest.raises(PayloadMissingError):
        await store.get(old)


async def test_what_else_is_in_the_folder_is_never_swept(tmp_path: Path) -> None:
    others = [
        tmp_path / "scheduler" / "hub.db",
        tmp_path / "ab" / "notes.txt",
        tmp_path / "kafka" / "log" / "0",
    ]
    for other in others:
        other.parent.mkdir(parents=True, exist_ok=True)
        other.write_text("somebody's")
    backend = FolderBackend(tmp_path, retention_s=100)
    await PayloadStore(backend, max_bytes=10_000).put(b"old")
    (tmp_path / "ab" / ".new-left-behind").touch()
    make_older(tmp_path, by_s=200)
    assert await backend.sweep() == 2, "the payload, and what a writer that died has left"
    assert [other.read_text() for other in others] == ["somebody's"] * 3


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("ftp://host/x", "scheme 'ftp' is not known"),
        ("payloads", "scheme '' is not known"),
        ("file://host/x", "absolute folder"),
        ("file:relative", "absolute folder"),
        ("redis://host:port", "no Redis URL"),
    ],
)
def test_a_url_of_no_use_is_refused_with_what_to_write(url: str, problem: str) -> None:
    with pytest.raises(PayloadSettingsError, match=problem):
        open_payload_store(PayloadSettings(url=SecretStr(url)))


def test_without_a_url_there_is_no_store() -> None:
    assert open_payload_store(PayloadSettings()) is None


def test_a_library_that_is_not_installed_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "obstore", None)
    monkeypatch.delitem(__import__("sys").modules, "towline.contracts.payloads.object_store", raising=False)
    for url, extra in (("s3://bucket/x", "payloads-s3"), ("az://container/x", "payloads-azure")):
        with pytest.raises(PayloadSettingsError, match=rf"pip install 'towline\[{extra}\]'"):
            open_payload_store(PayloadSettings(url=SecretStr(url)))


def test_a_password_in_the_url_is_not_shown() -> None:
    settings = PayloadSettings(url=SecretStr("redis://user:hunter2@127.0.0.1:1/0"))
    store = open_payload_store(settings)
    assert store is not None
    assert "hunter2" not in f"{settings!r} {store.place}"
