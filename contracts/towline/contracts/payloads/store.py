"""A store for large payloads: compressed, named by content, verified when read, with a small cache."""

from __future__ import annotations

import asyncio
import logging
import zlib
from collections import OrderedDict
from types import TracebackType
from typing import Final, Protocol, Self

from towline.contracts.errors import PayloadMissingError, PayloadStoreAwayError, PayloadTooLargeError
from towline.contracts.payload_reference import PayloadReference

_log = logging.getLogger(__name__)

_GZIP: Final = 31
"""zlib's window bits for a gzip header, which any language's tools can read."""
_LEVEL: Final = 1
_TRANSFERS: Final = 8
_SWEEP_EVERY_S: Final = 3600.0


class Backend(Protocol):
    """Where payloads are. A name is 64 hexadecimal digits: safe in any path or key.

    All methods raise `PayloadStoreAwayError` if the store does not answer or refuses.
    """

    @property
    def place(self) -> str:
        """Where it is, for messages: without credentials."""
        ...

    async def write(self, name: str, stored: bytes) -> None:
        """Keep `stored` under `name`, durably; its age begins anew if it is there."""
        ...

    async def read(self, name: str) -> bytes | None:
        """What is kept under `name`, or None."""
        ...

    async def sweep(self) -> int:
        """Delete what is older than the retention, unless the store does that by itself; how many."""
        ...

    async def close(self) -> None:
        """Close connections."""
        ...


class PayloadStore:
    """Puts large data aside and gets it back by reference. Belongs to one event loop.

    Data is written before its reference is given out, and the same data has the same reference: writing it
    again after a crash changes nothing. What is read is verified against the reference, so neither a damaged
    store nor a forged reference gives other data than was put in.

    Args:
        backend: Where it is kept.
        max_bytes: Largest data taken, in bytes.
        cache_bytes: Memory for what was written or read last, in bytes.
    """

    def __init__(self, backend: Backend, *, max_bytes: int, cache_bytes: int = 0) -> None:
        self._backend = backend
        self.max_bytes = max_bytes
        self._cache_bytes = cache_bytes
        self._cache: OrderedDict[str, bytes] = OrderedDict()
        self._cached_bytes = 0
        self._transfers = asyncio.Semaphore(_TRANSFERS)

    @property
    def place(self) -> str:
        """Where it is, for messages."""
        return self._backend.place

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def put(self, data: bytes) -> PayloadReference:
        """Keep `data`; returns when the store has it.

        Raises:
            PayloadTooLargeError: It is larger than `max_bytes`.
            PayloadStoreAwayError: The store does not answer; try again.
        """
        if len(data) > self.max_bytes:
            raise PayloadTooLargeError(
                f"has {len(data)} bytes, the payload store takes at most {self.max_bytes}: make it smaller, "
                "or raise TOWLINE_PAYLOADS_MAX_BYTES everywhere"
            )
        async with self._transfers:
            reference, stored = await asyncio.to_thread(_packed, data)
            await self._backend.write(reference.digest, stored)
        self._remember(reference.digest, data)
        return reference

    async def get(self, reference: PayloadReference) -> bytes:
        """The data that `reference` names.

        Raises:
            PayloadMissingError: The store does not have it, or has something else. Trying again won't help.
            PayloadStoreAwayError: The store does not answer; try again.
        """
        if (cached := self._cache.get(reference.digest)) is not None and len(cached) == reference.size_bytes:
            self._cache.move_to_end(reference.digest)
            return cached
        if reference.size_bytes > self.max_bytes:
            raise PayloadMissingError(
                f"{reference}: names more than the {self.max_bytes} bytes that are taken: raise "
                "TOWLINE_PAYLOADS_MAX_BYTES here to what its writer has"
            )
        async with self._transfers:
            stored = await self._backend.read(reference.digest)
            if stored is None:
                raise PayloadMissingError(
                    f"{reference}: is not in the payload store at {self.place}: it has expired "
                    "(TOWLINE_PAYLOADS_RETENTION_S), was deleted, or was written to another store "
                    "(TOWLINE_PAYLOADS_URL must be the same everywhere)"
                )
            data = await asyncio.to_thread(_unpacked, stored, reference)
        if data is None:
            raise PayloadMissingError(
                f"{reference}: the payload store at {self.place} has other data under that name"
            )
        self._remember(reference.digest, data)
        return data

    async def sweep_forever(self) -> None:
        """Delete what is too old, hourly, until cancelled."""
        while True:
            try:
                if count := await self._backend.sweep():
                    _log.info("payloads_expired", extra={"count": count, "store": self.place})
            except PayloadStoreAwayError as error:
                _log.warning("payloads_not_swept", extra={"error": str(error)})
            await asyncio.sleep(_SWEEP_EVERY_S)

    async def close(self) -> None:
        """Close connections. Idempotent."""
        self._cache.clear()
        self._cached_bytes = 0
        await self._backend.close()

    def _remember(self, digest: str, data: bytes) -> None:
        if len(data) > self._cache_bytes:
            return
        if (before := self._cache.pop(digest, None)) is not None:
            self._cached_bytes -= len(before)
        self._cache[digest] = data
        self._cached_bytes += len(data)
        while self._cached_bytes > self._cache_bytes:
            _, dropped = self._cache.popitem(last=False)
            self._cached_bytes -= len(dropped)


def _packed(data: bytes) -> tuple[PayloadReference, bytes]:
    return PayloadReference.of(data), zlib.compress(data, _LEVEL, wbits=_GZIP)


def _unpacked(stored: bytes, reference: PayloadReference) -> bytes | None:
    """The data, or None if it is not what the reference names. Never unpacks more than that has."""
    unpacker = zlib.decompressobj(wbits=_GZIP)
    try:
        data = unpacker.decompress(stored, reference.size_bytes + 1)
    except zlib.error:
        return None
    return data if reference.matches(data) else None
