"""What has arrived on a pub/sub connection, all of it at once.

redis-py hands messages out one by one, each through a dozen calls: with many runs that was more work than
all the rest of an event but for the write to its client. Here the first message of a wave comes by that way,
and those that are parsed already are taken from the parser. Private parts of redis-py are used in this module
only; where they are not as expected, every wave is one message.
"""

from __future__ import annotations

from typing import Any, Final, cast

import redis
from redis._parsers import hiredis

_NOTHING: Final[object] = getattr(hiredis, "NOT_ENOUGH_DATA", None)
_WAVE_COUNT: Final = 500
"""Messages taken at once."""

Message = tuple[str, str]
"""Channel and text."""


async def arrived(pubsub: Any) -> list[Message]:
    """Wait for a message, and give those that came with it, in order. Empty if it was no message.

    Args:
        pubsub: A `redis.asyncio.client.PubSub` of a client that decodes responses and speaks RESP2.

    Raises:
        redis.RedisError, OSError: The connection is lost.
    """
    first = await pubsub.get_message(timeout=None)
    messages: list[Message] = [] if first is None else [(first["channel"], first["data"])]
    gets = _parser(pubsub)
    while gets is not None and len(messages) < _WAVE_COUNT:
        reply: Any = gets()
        if reply is _NOTHING:
            break
        if isinstance(reply, list) and reply[:1] == ["message"]:
            _, channel, text = cast("list[str]", reply)
            messages.append((channel, text))
        elif isinstance(reply, redis.ConnectionError):
            raise reply
        else:
            # Subscribed, unsubscribed: redis-py keeps account of those.
            await pubsub.handle_message(reply)
    return messages


def _parser(pubsub: Any) -> Any:
    reader = getattr(getattr(pubsub.connection, "_parser", None), "_reader", None)
    return None if _NOTHING is None else getattr(reader, "gets", None)
