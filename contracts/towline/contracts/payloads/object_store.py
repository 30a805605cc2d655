"""Payloads in S3, Azure Blob Storage or Google Cloud Storage, by obstore (the Rust crate object_store).

Needs the extra ``towline[payloads-s3]`` or ``towline[payloads-azure]``. Credentials come from where the
provider's own tools look: `AWS_*`, `AZURE_*`, `GOOGLE_*` variables, instance and workload identity.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any, Final, cast

import obstore
from obstore.exceptions import BaseError
from obstore.store import from_url

from towline.contracts.errors import PayloadStoreAwayError

_SUFFIX: Final = ".gz"
_TIMEOUT_S: Final = 60.0
_RETRY: Final = {"max_retries": 2, "retry_timeout": timedelta(seconds=20)}


class ObjectStoreBackend:
    """One object a payload, ``<prefix>/<first two digits>/<digits>.gz``. Set a lifecycle rule for old ones.

    Args:
        url: ``s3://bucket/prefix``, ``az://container/prefix`` or ``gs://bucket/prefix``.
    """

    def __init__(self, url: str) -> None:
        self.place = url
        self._store: Any = from_url(url, retry_config=cast("Any", _RETRY))

    async def write(self, name: str, stored: bytes) -> None:
        """See `Backend`."""
        await self._asked(obstore.put_async(self._store, _path(name), stored))

    async def read(self, name: str) -> bytes | None:
        """See `Backend`."""
        return await self._asked(self._read(name))

    async def sweep(self) -> int:
        """The bucket's lifecycle rule does."""
        return 0

    async def close(self) -> None:
        """Connections end with the store."""

    async def _read(self, name: str) -> bytes | None:
        try:
            found = await obstore.get_async(self._store, _path(name))
        except FileNotFoundError:
            return None
        return bytes(await found.bytes_async())

    async def _asked(self, question: Any) -> Any:
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                return await question
        except (BaseError, OSError) as error:
            # A timeout says nothing.
            problem = next(iter(str(error).splitlines()), type(error).__name__)
            raise PayloadStoreAwayError(
                f"the payload store at {self.place} does not answer: {problem}"
            ) from error


def _path(name: str) -> str:
    return f"{name[:2]}/{name}{_SUFFIX}"
