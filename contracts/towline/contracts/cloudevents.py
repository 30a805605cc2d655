"""CloudEvents 1.0 over Kafka: `encode` writes binary mode, `decode` reads binary and structured mode.

Pure functions between an `Event` and the parts of a Kafka record, tied to no Kafka client. Written by
hand rather than with the CloudEvents SDK, which invents missing ids and lets broken JSON through:
docs/decisions/0002-cloudevents-codec.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final, cast

from pydantic import ValidationError
from pydantic_core import PydanticSerializationError, from_json, to_json

from towline.contracts.attributes import (
    CE_PREFIX,
    CONTENT_TYPE,
    MAX_ATTRIBUTE_LENGTH,
    MAX_COMMAND_ID_LENGTH,
    Attributes,
    binary_parts,
    is_attribute_text,
    is_structured,
    parse_json,
    structured_parts,
    valid_trace,
)
from towline.contracts.errors import DataElsewhereError, DecodeError, EncodeError
from towline.contracts.events import (
    EVENT_MODEL_BY_TYPE,
    AppRegistered,
    Event,
    EventData,
    RunRequested,
    is_run_id,
    parse_time,
)
from towline.contracts.payload_reference import DATAREF, SCHEME, PayloadReference

_EXTENSION_NAME: Final = re.compile(r"[a-z0-9]{1,64}")
_RESERVED: Final = frozenset(
    {"specversion", "id", "source", "type", "time", "subject", "datacontenttype", "data", "data_base64"}
    | {"traceparent", "tracestate", DATAREF}
)
_COMMAND_TOPICS: Final = frozenset({"runs", "approvals"})
_SPEC_VERSION: Final = b"1.0"
_JSON: Final = b"application/json"


@dataclass(frozen=True, slots=True)
class Record:
    """The parts of one Kafka record that carry an event."""

    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...]


def subject_of(data: EventData) -> str | None:
    """What an event is about, and so its key: the run's id, in the catalog the app's name.

    None only for a run request that leaves its run to be named by its event's id.
    """
    if isinstance(data, AppRegistered):
        return data.app
    return cast("str | None", getattr(data, "run_id", None))


def encode(event: Event) -> Record:
    """`event` as a Kafka record in binary mode. What this writes, `decode` reads.

    Raises:
        EncodeError: An attribute is empty or has characters that CloudEvents does not allow, a command's id
            is too long or cannot name its run, or the data cannot be written as JSON; the message names it.
    """
    _check_command_id(event)
    subject = subject_of(event.data) or event.id
    attributes: dict[str, str | None] = {
        "id": event.id,
        "source": event.source,
        "type": event.type,
        "time": None if event.time is None else _format_time(event.time),
        "subject": subject,
    }
    headers: list[tuple[str, bytes]] = [("ce_specversion", _SPEC_VERSION)]
    for name, value in (*attributes.items(), *_checked_extensions(event.extensions)):
        if value is not None:
            headers.append((CE_PREFIX + name, _attribute_bytes(name, value)))
    headers.append((CONTENT_TYPE, _JSON))
    traceparent, tracestate = valid_trace(event.traceparent, event.tracestate)
    if traceparent is not None:
        headers += [("traceparent", traceparent.encode()), ("ce_traceparent", traceparent.encode())]
    if tracestate is not None:
        headers += [("tracestate", tracestate.encode()), ("ce_tracestate", tracestate.encode())]
    return Record(key=_attribute_bytes("subject", subject), value=_body(event), headers=tuple(headers))


def decode(
    *,
    key: bytes | None = None,
    value: bytes | None,
    headers: Iterable[tuple[str, bytes | None]],
    data: bytes | None = None,
) -> Event:
    """The event that a Kafka record carries, in binary or structured mode.

    A ``run.requested`` without `run_id` gets the CloudEvents id as its run id. Trace context comes from
    the headers `traceparent` and `tracestate`, else from the CloudEvents attributes of these names; an
    invalid one is dropped, since tracing never stops work.

    Args:
        key: The record's key. Not looked at: the run's id is in the data, and a publisher may have had
            reasons of its own to choose another key.
        value: The record's value.
        headers: The record's headers, names in any case.
        data: The data of a record that carries only a reference to it (attribute `dataref`), fetched by
            `towline.contracts.payloads`.

    Raises:
        DataElsewhereError: The record carries a reference, and `data` was not given.
        DecodeError: The record is no event of this contract. Nothing else is ever raised.
    """
    del key
    named = tuple(headers)
    attributes, content = (
        structured_parts(value, named) if is_structured(named) else binary_parts(value, named)
    )
    if content is None and DATAREF in attributes.values:
        if data is None:
            raise _elsewhere(attributes)
        content = parse_json(data, DATAREF)
    return _event(attributes, content)


def _elsewhere(attributes: Attributes) -> DecodeError:
    """What to raise for a record that carries a reference in place of its data."""
    model = _model(attributes)
    text = attributes.required(DATAREF)
    reference = PayloadReference.parse(text)
    if reference is None:
        return DecodeError(
            "invalid_reference",
            f"{attributes.label(DATAREF)}: {text[:80]!r} is not followed: only "
            f"{SCHEME}:sha256:<digest>:<bytes> is, which names data in the payload store that is configured "
            "here: send the data itself otherwise",
            field=DATAREF,
        )
    return DataElsewhereError(
        reference,
        event_id=attributes.required("id"),
        event_type=model.event_type,
        time=_time(attributes),
        subject=attributes.optional("subject"),
        traceparent=valid_trace(*attributes.trace)[0],
    )


def _event(attributes: Attributes, data: Any) -> Event:
    model = _model(attributes)
    event_id, source = attributes.required("id"), attributes.required("source")
    if problem := _command_id_problem(model, event_id):
        raise DecodeError("invalid_attribute", f"{attributes.label('id')}: {problem}", field="id")
    traceparent, tracestate = valid_trace(*attributes.trace)
    event = Event(
        id=event_id,
        source=source,
        time=_time(attributes),
        subject=attributes.optional("subject"),
        data=_data(model, data),
        traceparent=traceparent,
        tracestate=tracestate,
        extensions={
            name: text
            for name, text in attributes.values.items()
            if name not in _RESERVED and _EXTENSION_NAME.fullmatch(name) and is_attribute_text(text)
        },
    )
    return _with_run_id(event, attributes)


def _model(attributes: Attributes) -> type[EventData]:
    version = attributes.required("specversion")
    if version != "1.0":
        raise DecodeError(
            "unsupported_version",
            f"{attributes.label('specversion')}: is {version[:16]!r}, but only 1.0 is read: send '1.0'",
            field="specversion",
        )
    name = attributes.required("type")
    model = EVENT_MODEL_BY_TYPE.get(name)
    if model is None:
        raise DecodeError(
            "unknown_type",
            f"{attributes.label('type')}: {name[:80]!r} is no event of this contract: "
            "send a type that docs/wire-contract.md lists, with its version, like towline.run.requested.v1",
            field="type",
        )
    return model


def _time(attributes: Attributes) -> datetime | None:
    text = attributes.optional("time")
    if text is None:
        return None
    try:
        return parse_time(text)
    except ValueError as error:
        raise DecodeError(
            "invalid_attribute",
            f"{attributes.label('time')}: {error}; leave it out if the time is not known",
            field="time",
        ) from error


def _data(model: type[EventData], data: Any) -> EventData:
    if not isinstance(data, dict):
        raise DecodeError(
            "invalid_data",
            f"data: must be a JSON object with the fields of {model.event_type}, is {_json_kind(data)}",
            field="data",
        )
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise _data_error(model, error) from error
    except RecursionError as error:
        raise DecodeError(
            "invalid_json", "data: is nested too deep: flatten it to fewer than 200 levels", field="data"
        ) from error


def _data_error(model: type[EventData], error: ValidationError) -> DecodeError:
    """The first problem, run_id's before any other: it decides whether the run can be known."""
    problems = error.errors(include_url=False, include_context=False)
    first = next((problem for problem in problems if problem["loc"][:1] == ("run_id",)), problems[0])
    # Below a field of any JSON the path also names pydantic's internal alternatives.
    path = first["loc"][:1] if first["type"] == "finite_number" else first["loc"]
    field = ".".join(str(part) for part in path) or "data"
    if field == "run_id":
        problem = "is required" if first["type"] == "missing" else "is no valid run id"
        return DecodeError(
            "invalid_run_id",
            f"data.run_id: {problem}: give 1 to 128 characters of A-Z a-z 0-9 . _ : -",
            field="run_id",
        )
    if first["type"] == "missing":
        text = f"is required in {model.event_type}"
    else:
        text = f"{first['msg'][:1].lower()}{first['msg'][1:]}, got {_json_kind(first['input'])}"
    others = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return DecodeError("invalid_data", f"data.{field}: {text}{others}", field=field)


def _with_run_id(event: Event, attributes: Attributes) -> Event:
    data = event.data
    if not isinstance(data, RunRequested) or data.run_id is not None:
        return event
    if not is_run_id(event.id):
        raise DecodeError(
            "invalid_run_id",
            f"data.run_id: is absent, so {attributes.label('id')} names the run, but that is no valid "
            "run id: give run_id or an id of 1 to 128 characters of A-Z a-z 0-9 . _ : -",
            field="run_id",
        )
    return replace(event, data=data.model_copy(update={"run_id": event.id}))


def _command_id_problem(model: type[EventData], event_id: str) -> str | None:
    if model.topic not in _COMMAND_TOPICS or len(event_id) <= MAX_COMMAND_ID_LENGTH:
        return None
    return (
        f"has {len(event_id)} characters, at most {MAX_COMMAND_ID_LENGTH} are allowed in a command, because "
        "its answer's id ends in it: shorten it"
    )


def _check_command_id(event: Event) -> None:
    if problem := _command_id_problem(type(event.data), event.id):
        raise EncodeError(f"attribute id: {problem}")
    data = event.data
    if isinstance(data, RunRequested) and data.run_id is None and not is_run_id(event.id):
        raise EncodeError(
            f"run_id: is absent, so the event's id {event.id[:140]!r} names the run, but that is no "
            "valid run id: give run_id or an id of 1 to 128 characters of A-Z a-z 0-9 . _ : -"
        )


def _json_kind(value: Any) -> str:
    """The JSON name of a value's type: errors name no values, which may be long or private."""
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int() | float():
            return "a number"
        case str():
            return "a string"
        case list():
            return "an array"
        case _:
            return "an object"


def _checked_extensions(extensions: Mapping[str, str]) -> Iterable[tuple[str, str]]:
    for name in extensions:
        if name in _RESERVED or _EXTENSION_NAME.fullmatch(name) is None:
            raise EncodeError(
                f"extension {name[:80]!r}: is reserved or no CloudEvents attribute name: "
                "use 1 to 64 lowercase letters and digits"
            )
    return extensions.items()


def _attribute_bytes(name: str, value: str) -> bytes:
    if not is_attribute_text(value):
        raise EncodeError(
            f"attribute {name}: must have 1 to {MAX_ATTRIBUTE_LENGTH} characters and no control characters"
        )
    try:
        return value.encode()
    except UnicodeEncodeError as error:
        raise EncodeError(f"attribute {name}: has a lone surrogate, which UTF-8 cannot carry") from error


def _format_time(time: datetime) -> str:
    if time.tzinfo is None:
        raise EncodeError("attribute time: has no offset: use an aware datetime, like datetime.now(UTC)")
    return time.astimezone(UTC).isoformat().replace("+00:00", "Z")


def _body(event: Event) -> bytes:
    try:
        data = event.data
        nulls = {name: None for name in data.always_written if getattr(data, name) is None}
        if nulls:
            body = to_json(data.model_dump(mode="json", exclude_none=True) | nulls)
        else:
            body = data.model_dump_json(exclude_none=True).encode()
        # Deep nesting and huge integers can be written but not read back: refused here, not downstream.
        from_json(body, allow_inf_nan=False, cache_strings="none")
    except (PydanticSerializationError, ValueError, RecursionError) as error:
        raise EncodeError(
            f"data of {event.type} {event.id}: cannot be written as JSON ({error}): it must be made of "
            "null, booleans, finite numbers, strings, arrays and objects, nested less than 200 deep"
        ) from error
    return body
