"""Spans that are told of after the fact: with their own times, and ids that do not depend on who tells.

A wait of days for a person has no process that could hold a span open. It is known in full when it ends,
and whoever repeats that end after a crash repeats the same span. All use of OpenTelemetry's private parts
for it is here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from hashlib import sha256
from typing import Final

from opentelemetry import trace
from opentelemetry.trace import Link, SpanContext, SpanKind

from towline.contracts.tracing import context_from

_SCOPE: Final = "towline"


def span_id_of(*parts: str) -> int:
    """A span id that follows from `parts`."""
    return int.from_bytes(sha256("\0".join(parts).encode()).digest()[:8], "big") or 1


def context_named(traceparent: str | None, tracestate: str | None = None) -> SpanContext | None:
    """The span that `traceparent` names; None if it is absent or malformed."""
    named = trace.get_current_span(context_from(traceparent, tracestate)).get_span_context()
    return named if named.is_valid else None


def nanoseconds(moment: datetime) -> int:
    """Unix time in ns."""
    return int(moment.timestamp() * 1_000_000) * 1_000


def tell(
    name: str,
    *,
    parent: SpanContext,
    span_id: int,
    start: datetime,
    end: datetime,
    attributes: Mapping[str, str | int | float | bool],
    links: Sequence[SpanContext] = (),
    kind: SpanKind = SpanKind.INTERNAL,
) -> None:
    """Export a span as it is, below `parent`, if `parent` is sampled. Does nothing without an SDK."""
    from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope

    provider = trace.get_tracer_provider()
    if not isinstance(provider, TracerProvider) or not parent.trace_flags.sampled:
        return
    span = ReadableSpan(
        name=name,
        context=SpanContext(
            parent.trace_id, span_id, is_remote=False, trace_flags=parent.trace_flags,
            trace_state=parent.trace_state,
        ),
        parent=parent,
        resource=provider.resource,
        attributes=dict(attributes),
        links=[Link(linked) for linked in links],
        kind=kind,
        start_time=nanoseconds(start),
        end_time=max(nanoseconds(end), nanoseconds(start)),
        instrumentation_scope=InstrumentationScope(_SCOPE),
    )  # fmt: skip
    provider._active_span_processor.on_end(span)  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
