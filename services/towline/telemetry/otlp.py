"""Spans as OTLP protobuf, written directly: the library's way by message objects costs several times as much.

Telemetry's cost per run is mostly this encoding. The usual span (its attributes are texts, numbers and truth
values) is written here; whatever else a span may hold is left to the library, span by span. A test compares
the two for any span. Field numbers are those of opentelemetry-proto's ``trace.proto``, which is stable.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Mapping, Sequence
from typing import Any, Final, cast

from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.exporter.otlp.proto.http import trace_exporter
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanContext, SpanKind

from towline.telemetry.export import dropped

_log = logging.getLogger(__name__)

_KINDS: Final = {
    SpanKind.INTERNAL: b"\x30\x01",
    SpanKind.SERVER: b"\x30\x02",
    SpanKind.CLIENT: b"\x30\x03",
    SpanKind.PRODUCER: b"\x30\x04",
    SpanKind.CONSUMER: b"\x30\x05",
}
# Field 16, fixed32: whether the parent is remote is known (0x100), and whether it is (0x200).
_LOCAL_PARENT: Final = struct.pack("<BBI", 0x85, 0x01, 0x100)
_REMOTE_PARENT: Final = struct.pack("<BBI", 0x85, 0x01, 0x300)
_TIMES: Final = struct.Struct("<BQBQ")
_DOUBLE: Final = struct.Struct("<Bd")
_UINT64: Final = 1 << 64
_KEPT_MAX: Final = 4_096
_TEXT_KEPT_MAX: Final = 200

_SIMPLE: Final = frozenset({str, bool, int, float})

_attributes: dict[tuple[str, type, Any], bytes] = {}
"""Encoded attributes: most of a span's come again in the next one."""


class EncodedSpans:
    """An encoded export request; stands in for the library's message where the exporter wants one."""

    __slots__ = ("_body",)

    def __init__(self, body: bytes) -> None:
        self._body = body

    def SerializePartialToString(self) -> bytes:  # noqa: N802 — protobuf's name
        """The request's bytes."""
        return self._body


def install() -> None:
    """Have the library's exporter write spans this way.

    The exporter has no public seam for it; one that no longer has this name goes on in its own way.
    """
    if hasattr(trace_exporter, "encode_spans"):
        setattr(trace_exporter, "encode_spans", encode)  # noqa: B010 — a type checker knows it better


def encode(spans: Sequence[ReadableSpan]) -> EncodedSpans:
    """`spans`, all of one process, as an ``ExportTraceServiceRequest``."""
    scopes: dict[Any, tuple[ReadableSpan, list[bytes]]] = {}
    for span in spans:
        body = _written(span)
        if body is None:
            dropped.add(1, {"reason": "not_encodable"})
        else:
            scopes.setdefault(_scope(span), (span, []))[1].append(_field(0x12, body))
    request: list[bytes] = []
    for span, bodies in scopes.values():
        # The wrapping is the library's, without spans; ours are appended to its one list of them.
        bare: Any = encode_spans([_bare(span)]).resource_spans[0]
        about = bare.scope_spans[0]
        del about.spans[:]
        scoped = about.SerializeToString() + b"".join(bodies)
        del bare.scope_spans[:]
        request.append(_field(0x0A, bare.SerializeToString() + _field(0x12, scoped)))
    return EncodedSpans(b"".join(request))


def _written(span: ReadableSpan) -> bytes | None:
    """The span; None if it cannot be: the batch's others do not suffer for it."""
    try:
        body = _span(span)
    except Exception:  # noqa: BLE001 - half a surrogate pair in a text, a time out of range, a kind that is none
        # Let the library see to it.
        body = None
    if body is not None:
        return body
    try:
        # The library's message of one span, taken out of its wrapping.
        message: Any = encode_spans([span]).resource_spans[0].scope_spans[0].spans[0]
        return message.SerializeToString()
    except Exception as error:  # noqa: BLE001 - whatever it is that one span cannot be written for
        _log.warning("span_not_encodable", extra={"span_name": repr(span.name), "error": repr(error)})
        return None


def _scope(span: ReadableSpan) -> Any:
    """What groups spans. Not resource and scope themselves: their hashes are made of JSON each time."""
    scope = span.instrumentation_scope
    if scope is None:
        return id(span.resource)
    if scope.attributes:
        return (id(span.resource), id(scope))
    return (id(span.resource), scope.name, scope.version, scope.schema_url)


def _bare(span: ReadableSpan) -> ReadableSpan:
    context = SpanContext(1, 1, is_remote=False)
    return ReadableSpan(
        "", context=context, resource=span.resource, instrumentation_scope=span.instrumentation_scope
    )


def _span(span: ReadableSpan) -> bytes | None:
    """The span, or None if it holds more than is written here."""
    context, parent, status = span.context, span.parent, span.status
    start, end = span.start_time, span.end_time
    if (
        context is None
        or start is None
        or end is None
        or context.trace_state
        or span.events
        or span.links
        or span.dropped_attributes
        or span.dropped_events
        or span.dropped_links
    ):
        return None
    attributes = _encoded(span.attributes)
    if attributes is None:
        return None
    parts = [
        b"\x0a\x10",
        context.trace_id.to_bytes(16, "big"),
        b"\x12\x08",
        context.span_id.to_bytes(8, "big"),
    ]
    if parent is not None:
        parts += (b"\x22\x08", parent.span_id.to_bytes(8, "big"))
    name = span.name.encode()
    parts += (b"\x2a", _varint(len(name)), name, _KINDS[span.kind], _TIMES.pack(0x39, start, 0x41, end))
    parts += attributes
    code = status.status_code.value
    description = (status.description or "").encode()
    said = (_field(0x12, description) if description else b"") + (bytes((0x18, code)) if code else b"")
    parts.append(_field(0x7A, said))
    parts.append(_REMOTE_PARENT if parent is not None and parent.is_remote else _LOCAL_PARENT)
    return b"".join(parts)


def _encoded(attributes: Mapping[str, Any] | None) -> list[bytes] | None:
    encoded: list[bytes] = []
    for key, value in (attributes or {}).items():
        kind = cast("type[Any]", type(value))
        known = _attributes.get((key, kind, value)) if kind in _SIMPLE else None
        if known is None:
            known = _attribute(key, value)
            if known is None:
                return None
            if kind is not float and (kind is not str or len(value) <= _TEXT_KEPT_MAX):
                if len(_attributes) >= _KEPT_MAX:
                    _attributes.clear()
                _attributes[key, kind, value] = known
        encoded.append(known)
    return encoded


def _attribute(key: str, value: Any) -> bytes | None:
    """Field 9 of a span; None for a kind of value that is the library's to write."""
    kind = cast("type[Any]", type(value))
    if kind is str:
        encoded = _field(0x0A, value.encode())
    elif kind is bool:
        encoded = b"\x10\x01" if value else b"\x10\x00"
    elif kind is int:
        if not -(_UINT64 >> 1) <= value < _UINT64 >> 1:
            return None
        encoded = b"\x18" + _varint(value % _UINT64)
    elif kind is float:
        encoded = _DOUBLE.pack(0x21, value)
    else:
        return None
    return _field(0x4A, _field(0x0A, key.encode()) + _field(0x12, encoded))


def _field(tag: int, body: bytes) -> bytes:
    size = len(body)
    return bytes((tag, size)) + body if size < 128 else bytes((tag,)) + _varint(size) + body


def _varint(number: int) -> bytes:
    if number < 128:
        return bytes((number,))
    parts = bytearray()
    while number > 127:
        parts.append(number & 127 | 128)
        number >>= 7
    parts.append(number)
    return bytes(parts)
