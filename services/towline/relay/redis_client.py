"""The relay's connections to Redis."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.resources import files
from typing import Any, Final, TypeAlias, cast

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError

from towline.contracts.settings import RedisSettings

_TIMEOUT_S: Final = 5.0
_CONNECTIONS_MAX: Final = 32


Queue: TypeAlias = Callable[[Any], None]
"""Queues commands in a pipeline of redis-py."""


def connect(settings: RedisSettings) -> Redis:
    """A client with bounded waits and connections that never repeats a command by itself."""
    pool = BlockingConnectionPool.from_url(  # pyright: ignore[reportUnknownMemberType]
        settings.url.get_secret_value(),
        decode_responses=True,
        # With RESP3, redis-py spends half as much again on each pub/sub message.
        protocol=2,
        max_connections=_CONNECTIONS_MAX,
        timeout=_TIMEOUT_S,
        socket_timeout=_TIMEOUT_S,
        socket_connect_timeout=_TIMEOUT_S,
        socket_keepalive=True,
        retry=Retry(NoBackoff(), 0),
    )
    return Redis(connection_pool=pool)


class Script:
    """A Lua script of this package, called by its digest."""

    def __init__(self, name: str) -> None:
        self._text = (files("towline.relay") / "scripts" / f"{name}.lua").read_text(encoding="utf-8")
        self._sha: str | None = None

    async def call(
        self,
        client: Redis,
        keys: Sequence[str],
        arguments: Sequence[str | int | float],
        *,
        after: Queue | None = None,
    ) -> Any:
        """Call it once, `after` other commands if any are given: see `call_many`.

        Raises:
            redis.RedisError: It was refused, or Redis is away.
        """
        [answer] = await self.call_many(client, [(keys, arguments)], after=after)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def call_many(
        self,
        client: Redis,
        calls: Sequence[tuple[Sequence[str], Sequence[str | int | float]]],
        *,
        after: Queue | None = None,
        then: Queue | None = None,
    ) -> list[Any]:
        """Call it for each of `calls`, in order, in one round trip. An answer may be an exception.

        Args:
            client: Where to.
            calls: Keys and arguments of each.
            after: Queues commands that come first, in one transaction with the calls: if Redis takes no
                writes, it takes none of them. All keys are then of one slot.
            then: Queues commands that come last; their answers come after those of the calls.

        Raises:
            redis.RedisError: Redis is away. Any number of the calls may have been carried out.
        """
        for last in (False, True):
            if self._sha is None:
                self._sha = cast("str", await cast("Any", client).script_load(self._text))
            pipeline = cast("Any", client).pipeline(transaction=after is not None)
            if after is not None:
                after(pipeline)
            before = len(pipeline)
            for keys, arguments in calls:
                pipeline.evalsha(self._sha, len(keys), *keys, *arguments)
            if then is not None:
                then(pipeline)
            answers: list[Any] = await pipeline.execute(raise_on_error=False)
            queued, answers = answers[:before], answers[before:]
            for answer in queued:
                if isinstance(answer, Exception):
                    raise answer
            if last or not any(isinstance(answer, NoScriptError) for answer in answers):
                return answers
            # Scripts are forgotten by a restart: those already carried out recognise the repeat.
            self._sha = None
        raise AssertionError("not reached")
