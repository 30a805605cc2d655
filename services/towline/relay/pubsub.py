"""What has arrived on a pub/sub connection, all of it at once.

redis-py hands messages out one by one, each through a dozen calls: with many runs that was more work than
all the rest of an event but for the write to its client. Here they are taken from its parser. Private parts
of redis-py are used in this module only; where they are not as expected, every wave is one message.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, cast

import redis
from redis._parsers import hiredis

_NOTHING: Final[object] = getattr(hiredis, "NOT_ENOUGH_DATA", None)
_WAVE_COUNT: Final = 2_000
"""Messages taken at once."""

_GROUP_CHARS: Final = 65_536

Message = tuple[str, str]
"""Channel and text."""


async def arrived(pubsub: Any) -> list[Message]:
    """Wait for a message, and give those that came with it, in order. Empty if it was no message.

    Args:
        pubsub: A `redis.asyncio.client.PubSub` of a client that decodes responses and speaks RESP2.

    Raises:
        redis.RedisError, OSError: The connection is lost.
    """
    parser: Any = getattr(pubsub.connection, "_parser", None)
    if _NOTHING is None or not hasattr(getattr(parser, "_reader", None), "gets"):
        first = await pubsub.get_message(timeout=None)
        return [] if first is None else [(first["channel"], first["data"])]
    messages: list[Message] = []
    reply: Any = await parser.read_response()
    gets = parser._reader.gets  # noqa: SLF001
    while True:
        if reply is _NOTHING:
            if not _has_come(parser):
                break
            await parser.read_from_socket()
        elif isinstance(reply, list) and reply[:1] == ["message"]:
            _, channel, text = cast("list[str]", reply)
            messages.append((channel, text))
        elif isinstance(reply, redis.ConnectionError):
            raise reply
        else:
            # Subscribed, unsubscribed: redis-py keeps account of those.
            await pubsub.handle_message(reply)
        if len(messages) >= _WAVE_COUNT:
            break
        reply = gets()
    return messages


def by_channel(messages: Iterable[Message]) -> list[tuple[str, list[str]]]:
    """Messages of one channel together, in order; those of much text in several groups.

    What a group is written as to a client is in its connection's buffer at once.
    """
    groups: list[tuple[str, list[str]]] = []
    open_groups: dict[str, tuple[list[str], int]] = {}
    for channel, text in messages:
        group, chars = open_groups.get(channel, (None, 0))
        if group is None or chars + len(text) > _GROUP_CHARS:
            group, chars = list[str](), 0
            groups.append((channel, group))
        group.append(text)
        open_groups[channel] = group, chars + len(text)
    return groups


def _has_come(parser: Any) -> bool:
    """Whether bytes are at hand that were not parsed yet: reading them does not wait."""
    stream = getattr(parser, "_stream", None)
    return bool(getattr(stream, "_buffer", b"")) and hasattr(parser, "read_from_socket")
