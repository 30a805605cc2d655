"""CloudEvents attributes and data as they stand in a Kafka record, in binary or structured mode.

The lower half of the codec (`cloudevents`): headers and bytes in, text attributes and parsed JSON out.
Raises nothing but `DecodeError`.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias, cast

from pydantic_core import from_json

from towline.contracts.errors import DecodeError
from towline.contracts.payload_reference import DATAREF

Headers: TypeAlias = Sequence[tuple[str, bytes | None]]

CE_PREFIX: Final = "ce_"
CONTENT_TYPE: Final = "content-type"
UNREADABLE: Final = "towline_unreadable"
"""Header of the stand-in for a record that the Kafka client could not read: says what was wrong."""
MAX_ATTRIBUTE_LENGTH: Final = 2048
"""In characters. An answer's id holds its run's id, its approval's id and its command's id."""
MAX_COMMAND_ID_LENGTH: Final = 512
"""In characters, so that the ids of a command's answers stay under `MAX_ATTRIBUTE_LENGTH`."""

_STRUCTURED: Final = "application/cloudevents"
_STRUCTURED_JSON: Final = "application/cloudevents+json"
_JSON_TYPE: Final = re.compile(r"(application|text)/([a-z0-9!#$&^_.\-]+\+)?json")
_UTF8: Final = frozenset({"utf-8", "utf8", "us-ascii", "ascii"})
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")
# RFC 3986 names no white space; a version 00 traceparent has exactly four fields, later ones may have more.
_TRACEPARENT: Final = re.compile(
    r"(?!ff)(?!00-.{52}-)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-[\x21-\x7e]*)?"
)
_TRACESTATE: Final = re.compile(r"[\x20-\x7e]{1,512}")
_MAX_TRACEPARENT_LENGTH: Final = 256

Trace: TypeAlias = tuple[str | None, str | None]


@dataclass(frozen=True, slots=True)
class Attributes:
    """The CloudEvents attributes of one record, by their lower-case names."""

    values: Mapping[str, str]
    trace: Trace
    """Trace parent and state, not yet checked."""
    prefix: str
    """What the publisher writes before an attribute's name: ``ce_`` in binary mode, else nothing."""

    def label(self, name: str) -> str:
        """The attribute's name as the publisher writes it, for error messages."""
        return self.prefix + name

    def optional(self, name: str) -> str | None:
        """The attribute's text, checked; None if absent.

        Raises:
            DecodeError: It is empty, too long, or has control characters.
        """
        value = self.values.get(name)
        if value is None:
            return None
        if not value:
            problem = "is empty"
        elif len(value) > MAX_ATTRIBUTE_LENGTH:
            problem = f"has more than {MAX_ATTRIBUTE_LENGTH} characters"
        elif has_control_characters(value):
            problem = "has control characters, which CloudEvents does not allow"
        else:
            return value
        raise DecodeError(
            "invalid_attribute",
            f"{self.label(name)}: {problem}: send 1 to {MAX_ATTRIBUTE_LENGTH} printable characters",
            field=name,
        )

    def required(self, name: str) -> str:
        """The attribute's text, checked.

        Raises:
            DecodeError: As for `optional`, or it is absent.
        """
        value = self.optional(name)
        if value is None:
            raise DecodeError(
                "missing_attribute", f"{self.label(name)}: is required by CloudEvents 1.0: add it", field=name
            )
        return value


def is_attribute_text(text: str) -> bool:
    """Whether `text` may be an attribute's value."""
    return 0 < len(text) <= MAX_ATTRIBUTE_LENGTH and not has_control_characters(text)


def has_control_characters(text: str) -> bool:
    """Whether `text` has characters that a CloudEvents attribute must not have."""
    return _CONTROL.search(text) is not None


def valid_trace(traceparent: str | None, tracestate: str | None) -> Trace:
    """The W3C trace context if it is valid, else (None, None)."""
    if traceparent is None or len(traceparent) > _MAX_TRACEPARENT_LENGTH:
        return None, None
    if _TRACEPARENT.fullmatch(traceparent) is None:
        return None, None
    if tracestate is None or _TRACESTATE.fullmatch(tracestate) is None:
        return traceparent, None
    return traceparent, tracestate


def is_structured(headers: Headers) -> bool:
    """Whether the record is in structured mode: its content type says so, whatever else it has."""
    for name, value in headers:
        if len(name) == len(CONTENT_TYPE) and name.lower() == CONTENT_TYPE:
            return bool(value) and value.lstrip()[: len(_STRUCTURED)].lower() == _STRUCTURED.encode()
    return False


def binary_parts(value: bytes | None, headers: Headers) -> tuple[Attributes, Any]:
    """Attributes from the ``ce_`` headers, data from the value."""
    raw: dict[str, bytes | None] = {}
    for name, content in headers:
        lower = name.lower()
        if raw.setdefault(lower, content) != content and _must_be_one(lower):
            raise DecodeError(
                "invalid_attribute",
                f"{lower}: is given twice with different values: send it once",
                field=lower.removeprefix(CE_PREFIX),
            )
    values: dict[str, str] = {}
    for name, content in raw.items():
        if name.startswith(CE_PREFIX) and content is not None:
            text = _header_text(name, content)
            if text is not None:
                values[name[len(CE_PREFIX) :]] = text
    if not values and (problem := _decoded(raw.get(UNREADABLE))) is not None:
        raise DecodeError(
            "unreadable", f"headers: {problem}: write the names of headers in ASCII", field="headers"
        )
    if not values:
        raise DecodeError(
            "no_headers",
            "headers: the record has no CloudEvents headers: send ce_specversion, ce_id, ce_source and "
            f"ce_type, or a structured event with content-type {_STRUCTURED_JSON}",
            field="headers",
        )
    content_type = _decoded(raw.get(CONTENT_TYPE)) if CONTENT_TYPE in raw else values.get("datacontenttype")
    _check_json_type(content_type, label=CONTENT_TYPE, field=CONTENT_TYPE)
    attributes = Attributes(values, _trace(raw, values), CE_PREFIX)
    if not value and DATAREF in values:
        return attributes, None
    return attributes, parse_json(value, "value")


def structured_parts(value: bytes | None, headers: Headers) -> tuple[Attributes, Any]:
    """Attributes and data from the one JSON object in the value."""
    raw: dict[str, bytes | None] = {}
    for name, content in headers:
        raw.setdefault(name.lower(), content)
    content_type = _decoded(raw.get(CONTENT_TYPE)) or ""
    media_type, charset = _media_type(content_type)
    if media_type != _STRUCTURED_JSON or charset not in _UTF8:
        raise DecodeError(
            "wrong_content_type",
            f"content-type: {content_type[:80]!r} is not read: send {_STRUCTURED_JSON}; charset=utf-8",
            field=CONTENT_TYPE,
        )
    event = parse_json(value, "value")
    if not isinstance(event, dict):
        raise DecodeError(
            "invalid_json",
            "value: a structured event must be one JSON object with specversion, id, source, type and data",
            field="value",
        )
    members = cast("dict[str, Any]", event)
    data = _structured_data(members)
    values = {
        name: text
        for name, member in members.items()
        if name not in {"data", "data_base64"} and (text := _attribute_text(name, member)) is not None
    }
    return Attributes(values, _trace(raw, values), ""), data


def parse_json(value: bytes | None, label: str) -> Any:
    """The JSON in `value`, parsed strictly: UTF-8, finite numbers, whole characters, bounded nesting.

    Raises:
        DecodeError: With reason null_value, empty_value or invalid_json.
    """
    if value is None:
        raise DecodeError(
            "null_value", f"{label}: is null (a tombstone): send the event's data as JSON", field=label
        )
    if not value:
        raise DecodeError("empty_value", f"{label}: is empty: send the event's data as JSON", field=label)
    try:
        return from_json(value, allow_inf_nan=False)
    except (ValueError, RecursionError) as error:
        raise DecodeError(
            "invalid_json",
            f"{label}: is no JSON ({error}): send UTF-8 JSON without NaN, Infinity or lone surrogates, "
            "nested less than 200 deep",
            field=label,
        ) from error


def _structured_data(members: Mapping[str, Any]) -> Any:
    _check_json_type(members.get("datacontenttype"), label="datacontenttype", field="datacontenttype")
    encoded = members.get("data_base64")
    if encoded is None:
        return members.get("data")
    if members.get("data") is not None:
        raise DecodeError(
            "invalid_attribute", "data_base64: stands beside data: send one of the two", field="data_base64"
        )
    if not isinstance(encoded, str):
        raise DecodeError("invalid_attribute", "data_base64: must be a string", field="data_base64")
    try:
        decoded = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as error:
        raise DecodeError(
            "invalid_attribute",
            f"data_base64: is no base64 ({error}): use the standard alphabet with padding, or send data",
            field="data_base64",
        ) from error
    return parse_json(decoded, "data_base64")


def _attribute_text(name: str, member: Any) -> str | None:
    """An attribute of a structured event as text; its JSON may be a string, boolean or integer."""
    match member:
        case None:
            return None
        case str():
            return member
        case bool():
            text = "true" if member else "false"
        case int():
            text = str(member)
        case _:
            text = None
    if name in {"specversion", "id", "source", "type", "time", "subject"}:
        raise DecodeError("invalid_attribute", f"{name}: must be a string", field=name)
    return text


def _must_be_one(name: str) -> bool:
    return name == CONTENT_TYPE or (
        name.startswith(CE_PREFIX) and name not in {"ce_traceparent", "ce_tracestate"}
    )


def _decoded(content: bytes | None) -> str | None:
    return None if content is None else content.decode("utf-8", "backslashreplace")


def _header_text(name: str, content: bytes) -> str | None:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        if name in {"ce_traceparent", "ce_tracestate"}:
            return None
        raise DecodeError(
            "invalid_attribute",
            f"{name[:80]}: is no UTF-8 ({error.reason} at byte {error.start}): encode header values as UTF-8",
            field=name.removeprefix(CE_PREFIX)[:80],
        ) from error


def _trace(headers: Mapping[str, bytes | None], attributes: Mapping[str, str]) -> Trace:
    """The plain headers' trace context if valid, since a hop may have renewed it; else the event's own."""
    if "traceparent" in headers:
        trace = valid_trace(_decoded(headers["traceparent"]), _decoded(headers.get("tracestate")))
        if trace[0] is not None:
            return trace
    return attributes.get("traceparent"), attributes.get("tracestate")


def _check_json_type(content_type: Any, *, label: str, field: str) -> None:
    if content_type is None or content_type == "application/json":
        return
    text = content_type if isinstance(content_type, str) else ""
    media_type, charset = _media_type(text)
    if _JSON_TYPE.fullmatch(media_type) is None or charset not in _UTF8:
        raise DecodeError(
            "wrong_content_type",
            f"{label}: {text[:80]!r} is not read: send application/json in UTF-8",
            field=field,
        )


def _media_type(content_type: str) -> tuple[str, str]:
    """Media type and charset, in lower case; UTF-8 if no charset is given."""
    media_type, *parameters = content_type.lower().split(";")
    charset = "utf-8"
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "charset":
            charset = value.strip().strip('"')
    return media_type.strip(), charset
