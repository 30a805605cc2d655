"""Errors of the relay.

```
RelayError
├── RelaySettingsError   a setting is missing or unsafe; the message names it and the fix
├── RedisAwayError       Redis does not answer
├── RedisLostDataError   Redis is older than it was
└── ProblemError         an HTTP answer as problem+json (`problems`)
```
"""

from __future__ import annotations

import re
from typing import Final

import redis
from redis.exceptions import ClusterDownError, NoPermissionError, TryAgainError

from towline.contracts.errors import TowlineError


class RelayError(TowlineError):
    """Base of the relay's errors."""


class RelaySettingsError(RelayError):
    """A setting is missing or unsafe."""


class RedisAwayError(RelayError):
    """Redis does not answer, or not with data."""


class RedisLostDataError(RelayError):
    """Redis came back older than it was: what was lost has to be read from Kafka again."""


REDIS_AWAY_ERRORS: Final = (
    redis.ConnectionError,
    redis.TimeoutError,
    redis.ReadOnlyError,
    redis.OutOfMemoryError,
    ClusterDownError,
    TryAgainError,
    NoPermissionError,
    OSError,
)
_AWAY_CODES: Final = re.compile(
    r"\b(BUSY|LOADING|MASTERDOWN|CLUSTERDOWN|TRYAGAIN|MISCONF|NOREPLICAS|READONLY|OOM|NOPERM|ACL failure)\b"
)
"""Of errors for which redis-py has no class, or that Redis wraps in one of a script or transaction."""


def is_redis_away(error: BaseException) -> bool:
    """Whether `error` means that Redis should be asked again later: it is no answer to what was asked."""
    if isinstance(error, REDIS_AWAY_ERRORS):
        return True
    # Of a command in a pipeline, redis-py says first which one it was.
    _, _, said = str(error).rpartition("of pipeline caused error: ")
    return isinstance(error, redis.ResponseError) and _AWAY_CODES.search(said) is not None
