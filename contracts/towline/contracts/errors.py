"""Errors of the contract package.

```
TowlineError
├── DecodeError            a record is no event of this contract (carries reason and field)
├── EncodeError            an event cannot be written (too large, not JSON)
├── PublishError           the broker has not acknowledged an event in time (it may have it all the same)
├── KafkaUnavailableError  no broker answered
└── ClientError
    ├── ResultTimeoutError no outcome within the time given; the run itself goes on
    └── RunEndedError      the run ended without an output (carries the outcome)
        ├── RunFailedError
        ├── RunCancelledError
        └── RunRejectedError
```
"""

from __future__ import annotations

from typing import Generic, Literal, TypeAlias, TypeVar

from towline.contracts.events import Event, RunCancelled, RunFailed, RunOutcome, RunRejected

DecodeReason: TypeAlias = Literal[
    "unreadable",
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


class PublishError(TowlineError):
    """The broker has not acknowledged an event within the time allowed, or refused it.

    It may have been written all the same. Sending the same event again is safe: its id is the same,
    and whoever reads it drops ids that it knows.

    Attributes:
        event_id: The event's CloudEvents id.
    """

    def __init__(self, message: str, *, event_id: str) -> None:
        super().__init__(message)
        self.event_id = event_id


class KafkaUnavailableError(TowlineError):
    """No broker answered within the time allowed."""


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


OutcomeT = TypeVar("OutcomeT", bound=RunOutcome)


class RunEndedError(ClientError, Generic[OutcomeT]):
    """The run ended without an output.

    Attributes:
        event: The terminal event, data included.
        run_id: The run.
    """

    def __init__(self, event: Event[OutcomeT], message: str) -> None:
        super().__init__(message)
        self.event = event
        self.run_id = event.data.run_id


class RunFailedError(RunEndedError[RunFailed]):
    """The run raised; `event.data.error` says what."""

    def __init__(self, event: Event[RunFailed]) -> None:
        error = event.data.error
        super().__init__(event, f"run {event.data.run_id} failed: {error.type}: {error.message}")


class RunCancelledError(RunEndedError[RunCancelled]):
    """The run was cancelled."""

    def __init__(self, event: Event[RunCancelled]) -> None:
        reason = f": {event.data.reason}" if event.data.reason else ""
        super().__init__(event, f"run {event.data.run_id} was cancelled{reason}")


class RunRejectedError(RunEndedError[RunRejected]):
    """The run was never started; `event.data.error` says why."""

    def __init__(self, event: Event[RunRejected]) -> None:
        error = event.data.error
        super().__init__(event, f"run {event.data.run_id} was rejected: {error.type}: {error.message}")
