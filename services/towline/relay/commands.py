"""From HTTP requests to events: what is published for each command. Pure but for `CommandPublisher`."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Protocol, TypeVar, cast
from uuid import uuid4

from pydantic import ValidationError
from pydantic_core import from_json

from towline.contracts.canonical import digest
from towline.contracts.errors import EncodeError, PublishError
from towline.contracts.events import (
    ApprovalDecided,
    ControlAction,
    Event,
    EventData,
    EventRaised,
    RunControl,
    RunRequested,
    is_run_id,
)
from towline.relay.principals import Principal
from towline.relay.problems import ProblemError, invalid
from towline.telemetry.propagation import inject

_log = logging.getLogger(__name__)

SOURCE = "towline/relay"
ModelT = TypeVar("ModelT", bound=EventData)


class Publisher(Protocol):
    """Publishes events, acknowledged; `towline.contracts.producer.EventProducer` does."""

    async def send(self, event: Event) -> None:
        """Publish one event."""
        ...


def parse_body(raw: bytes) -> dict[str, Any]:
    """The JSON object in a request's body; an empty body is an empty object.

    Raises:
        ProblemError: It is none.
    """
    if not raw.strip():
        return {}
    try:
        value = from_json(raw, allow_inf_nan=False)
    except ValueError as error:
        raise ProblemError(400, "invalid_json", f"body: is not JSON ({error})") from error
    if not isinstance(value, dict):
        raise ProblemError(400, "invalid_json", "body: must be a JSON object")
    return cast("dict[str, Any]", value)


def checked_run_id(run_id: str) -> str:
    """`run_id` from a path.

    Raises:
        ProblemError: It cannot name a run.
    """
    if not is_run_id(run_id):
        raise ProblemError(
            422, "invalid_run_id", "run_id: 1 to 128 of letters, digits, '.', '_', ':' and '-'"
        )
    return run_id


def event_id_of(principal: Principal, idempotency_key: str | None, path: str = "") -> str:
    """A command's event id: with an idempotency key, it follows from caller, key and path.

    Args:
        principal: The caller.
        idempotency_key: The header, if it was sent.
        path: What is commanded, unless it is a new run.

    Raises:
        ProblemError: The key is not usable.
    """
    if idempotency_key is None:
        return str(uuid4())
    if not 1 <= len(idempotency_key) <= 256:
        raise ProblemError(422, "invalid_idempotency_key", "Idempotency-Key: 1 to 256 characters")
    text = f"{principal.subject or ''}\n{idempotency_key}" + (f"\n{path}" if path else "")
    return "http-" + hashlib.sha256(text.encode()).hexdigest()[:40]


def content_digest(event: Event) -> str:
    """What tells one command from another under the same idempotency key."""
    return digest(event.data.model_dump(mode="json", exclude_none=True))


def run_requested(
    body: Mapping[str, Any], principal: Principal, idempotency_key: str | None
) -> Event[RunRequested]:
    """The event that asks for a run.

    With an idempotency key, run id and event id follow from caller and key: the same request sent again
    starts nothing new.

    Raises:
        ProblemError: The body is no request, or the key is not usable.
    """
    event_id = event_id_of(principal, idempotency_key)
    fields = dict(body)
    fields.setdefault("run_id", event_id)
    if principal.subject is not None:
        fields["requested_by"] = principal.subject
    return _event(_model(RunRequested, fields), event_id)


def run_control(
    run_id: str, action: ControlAction, body: Mapping[str, Any], event_id: str | None = None
) -> Event[RunControl]:
    """The event that controls a run.

    Raises:
        ProblemError: The body is not valid.
    """
    fields = {"reason": body.get("reason"), "run_id": run_id, "action": action}
    return _event(_model(RunControl, fields), event_id)


def approval_decided(
    run_id: str,
    approval_id: str,
    body: Mapping[str, Any],
    principal: Principal,
    event_id: str | None = None,
) -> Event[ApprovalDecided]:
    """The event that decides an approval. The approver is the caller, whatever the body says.

    Raises:
        ProblemError: The body is not valid.
    """
    fields = {**body, "run_id": run_id, "approval_id": approval_id, "approver": principal.subject}
    return _event(_model(ApprovalDecided, fields), event_id)


def event_raised(
    run_id: str, name: str, body: Mapping[str, Any], event_id: str | None = None
) -> Event[EventRaised]:
    """The event that raises another external event; its data is the body's `data`.

    Raises:
        ProblemError: The body is not valid.
    """
    fields = {"run_id": run_id, "name": name, "data": body.get("data")}
    return _event(_model(EventRaised, fields), event_id)


async def publish(publisher: Publisher, event: Event) -> None:
    """Publish, or say why not.

    Raises:
        ProblemError: 413 if it is too large, 503 if Kafka does not take it now.
    """
    try:
        await publisher.send(event)
    except EncodeError as error:
        raise ProblemError(413, "too_large", str(error)) from error
    except PublishError as error:
        _log.warning("publish_failed", extra={"event_id": event.id, "error": str(error)})
        raise ProblemError(
            503, "kafka_away", "Kafka did not acknowledge it in time; send it again with the same "
            "Idempotency-Key or run_id", headers={"Retry-After": "2"},
        ) from error  # fmt: skip


def _model(model: type[ModelT], fields: Mapping[str, Any]) -> ModelT:
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        raise invalid(error) from error


def _event(data: ModelT, event_id: str | None = None) -> Event[ModelT]:
    traceparent, tracestate = inject()
    return Event(
        id=event_id or str(uuid4()),
        source=SOURCE,
        data=data,
        time=datetime.now(UTC),
        subject=cast("str | None", getattr(data, "run_id", None)),
        traceparent=traceparent,
        tracestate=tracestate,
    )
