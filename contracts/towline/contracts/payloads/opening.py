"""From `TOWLINE_PAYLOADS_*` to a payload store."""

from __future__ import annotations

from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from towline.contracts.errors import PayloadSettingsError
from towline.contracts.payloads.store import Backend, PayloadStore
from towline.contracts.settings import PayloadSettings

_OBJECTS: Final = {"s3": "payloads-s3", "az": "payloads-azure", "gs": "payloads-s3"}
_REDIS: Final = frozenset({"redis", "rediss"})


def open_payload_store(settings: PayloadSettings | None = None) -> PayloadStore | None:
    """The payload store of this process; None if none is configured. Connects when it is first used.

    Raises:
        PayloadSettingsError: The URL is none that is known, or its library is not installed; says which extra
            has it.
    """
    settings = settings or PayloadSettings()
    if settings.url is None or not settings.url.get_secret_value():
        return None
    return PayloadStore(
        _backend(settings.url.get_secret_value(), settings.retention_s),
        max_bytes=settings.max_bytes,
        cache_bytes=settings.cache_bytes,
    )


def _backend(url: str, retention_s: float) -> Backend:
    parts = urlsplit(url)
    if parts.scheme == "file":
        return _folder(url, retention_s)
    if parts.scheme in _REDIS:
        try:
            from towline.contracts.payloads.redis_store import RedisBackend
        except ModuleNotFoundError as error:
            raise _missing(parts.scheme, "payloads-redis", error) from error
        try:
            return RedisBackend(url, retention_s=retention_s)
        except ValueError as error:
            raise PayloadSettingsError(f"TOWLINE_PAYLOADS_URL: is no Redis URL ({error})") from None
    if parts.scheme in _OBJECTS:
        try:
            from towline.contracts.payloads.object_store import ObjectStoreBackend
        except ModuleNotFoundError as error:
            raise _missing(parts.scheme, _OBJECTS[parts.scheme], error) from error
        try:
            return ObjectStoreBackend(url)
        except Exception as error:  # obstore's own hierarchy has no common public type for this
            raise PayloadSettingsError(f"TOWLINE_PAYLOADS_URL: {url}: {error}") from error
    raise PayloadSettingsError(
        f"TOWLINE_PAYLOADS_URL: scheme {parts.scheme[:32]!r} is not known: use file:///folder, redis://, "
        "rediss://, s3://bucket/prefix, az://container/prefix or gs://bucket/prefix"
    )


def _folder(url: str, retention_s: float) -> Backend:
    from towline.contracts.payloads.folder import FolderBackend

    parts = urlsplit(url)
    root = Path(unquote(parts.path))
    if parts.netloc not in {"", "localhost"} or not root.is_absolute():
        raise PayloadSettingsError(
            f"TOWLINE_PAYLOADS_URL: {url}: give an absolute folder, like file:///var/lib/towline/payloads"
        )
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise PayloadSettingsError(f"TOWLINE_PAYLOADS_URL: {root}: {error.strerror}") from error
    return FolderBackend(root, retention_s=retention_s)


def _missing(scheme: str, extra: str, error: ModuleNotFoundError) -> PayloadSettingsError:
    return PayloadSettingsError(
        f"TOWLINE_PAYLOADS_URL: {scheme}:// needs {error.name}, which is not installed: "
        f"pip install 'towline[{extra}]'"
    )
