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

from towline.contracts.errors import TowlineError


class RelayError(TowlineError):
    """Base of the relay's errors."""


class RelaySettingsError(RelayError):
    """A setting is missing or unsafe."""


class RedisAwayError(RelayError):
    """Redis does not answer, or not with data."""


class RedisLostDataError(RelayError):
    """Redis came back older than it was: what was lost has to be read from Kafka again."""
