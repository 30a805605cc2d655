"""The wire contract: events, codec, topics, client. Knows no service.

What a downstream service needs is exported here; `faststream` is imported on its own, since FastStream
is an extra. What needs aiokafka is imported when it is first used: models and codec load without it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from towline.contracts.cloudevents import Record, decode, encode
from towline.contracts.errors import (
    ClientError,
    DataElsewhereError,
    DecodeError,
    EncodeError,
    KafkaUnavailableError,
    PayloadMissingError,
    PayloadStoreAwayError,
    PublishError,
    ResultTimeoutError,
    RunCancelledError,
    RunEndedError,
    RunFailedError,
    RunRejectedError,
    TowlineError,
)
from towline.contracts.events import (
    EVENT_MODEL_BY_TYPE,
    EVENT_MODELS,
    OUTCOME_MODELS,
    AppRegistered,
    ApprovalDecided,
    ApprovalRefused,
    ApprovalRequested,
    ApprovalResolved,
    ControlRefused,
    ErrorInfo,
    Event,
    EventData,
    EventRaised,
    RunCancelled,
    RunCompleted,
    RunControl,
    RunFailed,
    RunOutcome,
    RunProgressed,
    RunRejected,
    RunRequested,
    RunStarted,
    RunTypeInfo,
    Usage,
    is_run_id,
)
from towline.contracts.settings import KafkaSettings, PayloadSettings
from towline.contracts.topics import TOPICS, Topics, TopicSpec

if TYPE_CHECKING:
    from towline.contracts.client import Run, TowlineClient
    from towline.contracts.producer import EventProducer
    from towline.contracts.streams import EventStream
    from towline.contracts.tracing import context_of

__all__ = [
    "EVENT_MODELS",
    "EVENT_MODEL_BY_TYPE",
    "OUTCOME_MODELS",
    "TOPICS",
    "AppRegistered",
    "ApprovalDecided",
    "ApprovalRefused",
    "ApprovalRequested",
    "ApprovalResolved",
    "ClientError",
    "ControlRefused",
    "DataElsewhereError",
    "DecodeError",
    "EncodeError",
    "ErrorInfo",
    "Event",
    "EventData",
    "EventProducer",
    "EventRaised",
    "EventStream",
    "KafkaSettings",
    "KafkaUnavailableError",
    "PayloadMissingError",
    "PayloadSettings",
    "PayloadStoreAwayError",
    "PublishError",
    "Record",
    "ResultTimeoutError",
    "Run",
    "RunCancelled",
    "RunCancelledError",
    "RunCompleted",
    "RunControl",
    "RunEndedError",
    "RunFailed",
    "RunFailedError",
    "RunOutcome",
    "RunProgressed",
    "RunRejected",
    "RunRejectedError",
    "RunRequested",
    "RunStarted",
    "RunTypeInfo",
    "TopicSpec",
    "Topics",
    "TowlineClient",
    "TowlineError",
    "Usage",
    "context_of",
    "decode",
    "encode",
    "is_run_id",
]

_LAZY = {
    "EventProducer": "producer",
    "EventStream": "streams",
    "Run": "client",
    "TowlineClient": "client",
    "context_of": "tracing",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
