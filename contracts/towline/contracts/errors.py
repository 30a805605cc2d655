"""Errors of the contract package.

```
TowlineError
├── DecodeError            a record is no event of this contract (carries reason and field)
│   └── DataElsewhereError its data is in a payload store, and none is configured here (carries the reference)
├── EncodeError            an event cannot be written (too large, not JSON)
│   └── PayloadTooLargeError   a payload store takes no data so large
├── PublishError           the broker has not acknowledged an event in time (it may have it all the same)
├── KafkaUnavailableError  no broker answered
├── SigningKeyError        a key for signed decisions is of no use
├── SignatureInvalidError  a decision's signature is missing or proves something else
├── PayloadError           something about a payload store
│   ├── PayloadSettingsError   its settings, or a library that is not installed
│   ├── PayloadStoreAwayError  it does not answer: try again
│   └── PayloadMissingError    it does not have what was asked for: trying again won't help
└── ClientError
    ├── ResultTimeoutError no outcome within the time given; the run itself goes on
    └── RunEndedError      the run ended without an output (carries the outcome)
        ├── RunFailedError
        ├── RunCancelledError
        └── RunRejectedError
```
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Generic, Literal, TypeAlias, TypeVar

from towline.contracts.events import Event, RunCancelled, RunFailed, RunOutcome, RunRejected

if TYPE_CHECKING:
    from towline.contracts.payload_reference import PayloadReference

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
    "invalid_reference",
    "data_elsewhere",
    "payload_missing",
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


class DataElsewhereError(DecodeError):
    """The record carries a reference (`dataref`) to its data, which is in a payload store.

    Attributes:
        reference: Names the data; `PayloadStore.get` has it.
        event_id: The event's id.
        event_type: Its type.
        time: Its time, as far as the record says.
        subject: What it is about, its run's id, as far as the record says.
        traceparent: Its trace context, valid.
    """

    def __init__(
        self,
        reference: PayloadReference,
        *,
        event_id: str,
        event_type: str,
        time: datetime | None = None,
        subject: str | None = None,
        traceparent: str | None = None,
    ) -> None:
        super().__init__(
            "data_elsewhere",
            f"dataref: the data is in a payload store ({reference}), and none is configured here: "
            "set TOWLINE_PAYLOADS_URL to the store that its publisher uses",
            field="dataref",
        )
        self.reference = reference
        self.event_id = event_id
        self.event_type = event_type
        self.time = time
        self.subject = subject
        self.traceparent = traceparent


class EncodeError(TowlineError):
    """An event cannot be written as a Kafka record."""


class SigningKeyError(TowlineError):
    """A key for signed decisions is of no use; the message says why, and never what the key is."""


class SignatureInvalidError(TowlineError):
    """A decision is not signed, or its signature proves something else."""


class PayloadTooLargeError(EncodeError):
    """Larger than what a payload store takes."""


class PayloadError(TowlineError):
    """Base of what can be wrong with a payload store."""


class PayloadSettingsError(PayloadError):
    """Its settings name no store, or one whose library is not installed."""


class PayloadStoreAwayError(PayloadError):
    """It does not answer, or refuses: try again."""


class PayloadMissingError(PayloadError):
    """It answers, and does not have what was asked for. Trying again does not help."""


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
