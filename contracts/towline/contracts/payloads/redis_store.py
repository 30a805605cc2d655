"""Payloads in Redis or Valkey, with an expiry each. Needs the extra ``towline[payloads-redis]``."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, Final, TypeVar, cast
from urllib.parse import urlsplit

import redis
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from towline.contracts.errors import PayloadStoreAwayError

_T = TypeVar("_T")
_KEY: Final = "towline:payload:"
_TIMEOUT_S: Final = 10.0


class RedisBackend:
    """One string a payload, ``towline:payload:<digits>``.

    Args:
        url: redis:// or rediss:// (TLS), with user and password.
        retention_s: It expires when it was neither written nor read for so long.
    """

    def __init__(self, url: str, *, retention_s: float) -> None:
        parts = urlsplit(url)
        self.place = f"{parts.scheme}://{parts.hostname}:{parts.port or 6379}"
        self._expires_s = max(1, int(retention_s))
        self._redis = cast("Any", Redis).from_url(
            url,
            decode_responses=False,
            socket_timeout=_TIMEOUT_S,
            socket_connect_timeout=_TIMEOUT_S,
            retry=Retry(NoBackoff(), 0),
        )

    async def write(self, name: str, stored: bytes) -> None:
        """See `Backend`."""
        await self._asked(self._redis.set(f"{_KEY}{name}", stored, ex=self._expires_s))

    async def read(self, name: str) -> bytes | None:
        """See `Backend`. What is read counts as new."""
        return await self._asked(self._redis.getex(f"{_KEY}{name}", ex=self._expires_s))

    async def sweep(self) -> int:
        """Redis expires them by itself."""
        return 0

    async def close(self) -> None:
        """Close connections."""
        await self._redis.aclose()

    async def _asked(self, question: Awaitable[_T]) -> _T:
        try:
            return await question
        except (redis.RedisError, OSError) as error:
            raise PayloadStoreAwayError(
                f"the payload store at {self.place} does not answer: {error}"
            ) from error
