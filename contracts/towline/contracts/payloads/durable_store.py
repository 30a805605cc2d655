"""The payload store as the Durable Task SDK's clients and workers want it. Needs `durabletask`."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

from durabletask.payload import LargePayloadStorageOptions
from durabletask.payload import PayloadStore as DurablePayloadStore

from towline.contracts.errors import PayloadMissingError
from towline.contracts.payload_reference import PayloadReference, is_reference
from towline.contracts.payloads.store import PayloadStore

_T = TypeVar("_T")
_SYNC_TIMEOUT_S: Final = 120.0


class SharedPayloadStore(DurablePayloadStore):
    """Keeps what is too large for a history in the process's payload store.

    Args:
        store: The store; belongs to the running event loop.
        threshold_bytes: Larger fields of a message are put aside.
        lenient: A payload that is missing reads as its reference, for who only looks at histories.
    """

    def __init__(self, store: PayloadStore, *, threshold_bytes: int, lenient: bool = False) -> None:
        self._store = store
        self._lenient = lenient
        self._loop = asyncio.get_running_loop()
        # Size is judged by the store, whose error says what to do.
        self._options = LargePayloadStorageOptions(
            threshold_bytes=threshold_bytes, max_stored_payload_bytes=sys.maxsize
        )

    @property
    def options(self) -> LargePayloadStorageOptions:
        """Threshold and largest payload."""
        return self._options

    async def upload_async(self, data: bytes, *, instance_id: str | None = None) -> str:
        """Keep `data`; the same data has the same token, whatever instance it belongs to."""
        del instance_id
        return str(await self._store.put(data))

    async def download_async(self, token: str) -> bytes:
        """The data of `token`.

        Raises:
            PayloadMissingError: It is not there.
        """
        reference = PayloadReference.parse(token)
        if reference is None:
            raise PayloadMissingError(f"{token[:200]!r}: is no reference to a payload")
        try:
            return await self._store.get(reference)
        except PayloadMissingError:
            if self._lenient:
                return token.encode()
            raise

    def upload(self, data: bytes, *, instance_id: str | None = None) -> str:
        """As `upload_async`, from another thread than the store's loop."""
        return self._wait(self.upload_async(data, instance_id=instance_id))

    def download(self, token: str) -> bytes:
        """As `download_async`, from another thread than the store's loop."""
        return self._wait(self.download_async(token))

    def is_known_token(self, value: str) -> bool:
        """Whether `value` is a reference. No JSON text is one, so no user's data is taken for it."""
        return is_reference(value)

    def _wait(self, work: Coroutine[Any, Any, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(_SYNC_TIMEOUT_S)
