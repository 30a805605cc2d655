"""Errors of the contract package.

```
TowlineError
├── DecodeError            a record is no event of this contract (carries reason and field)
├── EncodeError            an event cannot be written (too large, not JSON)
└── ClientError
    ├── ResultTimeoutError no outcome within the time given; the run itself goes on
    └── RunEndedError      the run ended without an output (carries the outcome)
```
"""

from __future__ import annotations

from typing import Literal, TypeAlias

DecodeReason: TypeAlias = Literal[
    "no_headers",
    "unknown_type",
    "unsupported_version",
    "wrong_content_type",
    "null_value",
    "empty_value",
    "invalid_json",
    "invalid_run_id",
    "invalid_data",
    "missing_attribute",
    "invalid_attribute",
]


class TowlineError(Exception):
    """Base of every error that Towline raises on purpose."""


class DecodeError(TowlineError):
    """A Kafka record is no event of this contract.

    Attributes:
        reason: Stable word for programs and metrics.
        field: The attribute, header or data field at fault, if one is.
    """

    def __init__(self, reason: DecodeReason, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.reason: DecodeReason = reason
        self.field = field


class EncodeError(TowlineError):
    """An event cannot be written as a Kafka record."""


class ClientError(TowlineError):
    """Base of the typed client's errors."""


class ResultTimeoutError(ClientError):
    """No outcome within the time given. The run itself is not touched and goes on."""

    def __init__(self, run_id: str, timeout_s: float) -> None:
        super().__init__(
            f"run {run_id} has no outcome after {timeout_s:g} s; it goes on: wait again with a longer timeout"
        )
        self.run_id = run_id
        self.timeout_s = timeout_s
