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

from typing import Final

import redis

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
    OSError,
)
_AWAY_CODES: Final = ("LOADING", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "MISCONF", "NOREPLICAS")


def is_redis_away(error: BaseException) -> bool:
    """Whether `error` means that Redis should be asked again later."""
    return isinstance(error, REDIS_AWAY_ERRORS) or (
        isinstance(error, redis.ResponseError) and str(error).startswith(_AWAY_CODES)
    )
