"""What Redis's errors mean. Imports redis, which only those have who are given one."""

from __future__ import annotations

import re
from typing import Any, Final, TypeGuard

import redis
from redis.exceptions import AskError, ClusterDownError, MovedError, NoPermissionError, TryAgainError

_AWAY_ERRORS: Final = (
    redis.ConnectionError,
    redis.TimeoutError,
    redis.ReadOnlyError,
    redis.OutOfMemoryError,
    ClusterDownError,
    # Another node of the cluster has it: this one was the primary, or will be again.
    AskError,
    MovedError,
    TryAgainError,
    NoPermissionError,
    OSError,
)
_AWAY_CODES: Final = re.compile(
    r"\b(BUSY|LOADING|MASTERDOWN|CLUSTERDOWN|TRYAGAIN|MISCONF|NOREPLICAS|READONLY|OOM|NOPERM|ACL failure)\b"
)
"""Of errors for which redis-py has no class, or that Redis wraps in one of a script or transaction."""

_NO_DATABASE: Final = re.compile(r"DB index is out of range|SELECT is not allowed in cluster mode")
"""The answer to the first command of a connection, so to whatever was asked."""


def is_redis_away(answer: Any) -> TypeGuard[Exception]:
    """Whether Redis was not reached, or says that it will do later what it does not do now.

    It is no answer to what was asked then: ask again.
    """
    if isinstance(answer, _AWAY_ERRORS):
        return True
    if not isinstance(answer, redis.ResponseError):
        return False
    # Of a command in a pipeline, redis-py says first which one it was.
    _, _, said = str(answer).rpartition("of pipeline caused error: ")
    return _AWAY_CODES.search(said) is not None or _NO_DATABASE.search(said) is not None


def redis_problem(error: Exception) -> str:
    """What to tell people of an `error` for which Redis is away; of a wrong setting, with the fix."""
    if _NO_DATABASE.search(str(error)):
        return (
            f"Redis has no database of the number that TOWLINE_REDIS_URL ends in ({error}): "
            "give one below its `databases`, on a cluster 0"
        )
    return f"Redis does not answer: {str(error) or type(error).__name__}"
