"""Large payloads of work items: fetched before an item is carried out, put aside before it is reported.

The SDK's own worker does both in the thread that carries the item out. Here items share one event loop, so
transfers are awaited, and an item waits while the payload store is away: it is never failed for that.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

from durabletask.payload import deexternalize_payloads_async, externalize_payloads_async

from towline.contracts.errors import PayloadMissingError, PayloadStoreAwayError, PayloadTooLargeError
from towline.contracts.payload_reference import SCHEME
from towline.contracts.payloads import PayloadStore
from towline.contracts.payloads.durable_store import SharedPayloadStore
from towline.worker import sdk
from towline.worker.errors import TurnAbandonedError

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

_MARK: Final = f"{SCHEME}:sha256:".encode()
_BACKOFF_S: Final = (0.1, 0.3, 1.0, 3.0, 5.0)
TURN_PATIENCE_S: Final = 45.0
"""Then a turn is left: its lease (60 s) ends, and it is handed out again."""

LOST: Final = (PayloadMissingError, PayloadTooLargeError)
"""What makes an item fail: no later attempt would go better."""


class ItemPayloads:
    """Belongs to the dispatcher's loop.

    Args:
        store: Where large payloads are; None: there is no store, and messages are left as they are.
        inline_bytes: Larger fields go to the store.
    """

    def __init__(self, store: PayloadStore | None, *, inline_bytes: int) -> None:
        self._inline_bytes = inline_bytes
        self._max_bytes = 0 if store is None else store.max_bytes
        self._shared = None if store is None else SharedPayloadStore(store, threshold_bytes=inline_bytes)

    @property
    def enabled(self) -> bool:
        """Whether there is a store."""
        return self._shared is not None

    async def fetch(self, request: Any, *, patience_s: float | None = None) -> None:
        """Put payloads in the place of the references in `request`.

        Raises:
            PayloadMissingError: One is gone.
            TurnAbandonedError: The store was away for longer than `patience_s`.
        """
        shared = self._shared
        # Looking at each field of each message would cost more than most turns do.
        if shared is None or _MARK not in request.SerializeToString():
            return
        await _patiently(lambda: deexternalize_payloads_async(request, shared), patience_s)

    def check(self, message: Any) -> None:
        """Make sure that the store takes all that is in `message`.

        Raises:
            PayloadTooLargeError: It does not.
        """
        if self._shared is None or message.ByteSize() <= self._max_bytes:
            return
        if (size := sdk.largest_text_bytes(message)) > self._max_bytes:
            raise PayloadTooLargeError(
                f"a result or input of {size} bytes is more than the payload store takes "
                f"({self._max_bytes}): make it smaller, or raise TOWLINE_PAYLOADS_MAX_BYTES"
            )

    async def keep(self, message: Any, *, patience_s: float | None = None) -> None:
        """Put references in the place of the large payloads in `message`.

        Raises:
            PayloadTooLargeError: The store does not take one.
            TurnAbandonedError: The store was away for longer than `patience_s`.
        """
        shared = self._shared
        if shared is None or message.ByteSize() <= self._inline_bytes:
            return
        await _patiently(lambda: externalize_payloads_async(message, shared), patience_s)


async def _patiently(work: Callable[[], Awaitable[_T]], patience_s: float | None) -> _T:
    loop = asyncio.get_running_loop()
    began, attempt = loop.time(), 0
    while True:
        try:
            return await work()
        except PayloadStoreAwayError as error:
            waited_s = loop.time() - began
            _log.warning("payload_store_away", extra={"waited_s": waited_s, "error": str(error)})
            if patience_s is not None and waited_s >= patience_s:
                raise TurnAbandonedError(f"the payload store was away for {waited_s:.0f} s") from error
        await asyncio.sleep(_BACKOFF_S[min(attempt, len(_BACKOFF_S) - 1)])
        attempt += 1
