"""The SDK's tracer provider with less work a span: what telemetry costs a run is mostly what a span costs.

Same spans, same processors, same exporters; left out is what a role's spans do not need:

- A tracer is found by its name. The SDK builds and hashes a scope for each call, and both Durable Task and
  Agent Framework ask for their tracer anew with every span.
- A span that has a parent goes by the parent's flag, as parent-based samplers decide.
- Attributes are a plain dict; texts, numbers and truth values go in as they are.
- The span itself is exported, not a copy.

Spans of everybody in the process come from here, so they stay instances of the SDK's classes. A test runs the
same program with both providers and compares. Private parts of the SDK are used here and in `spans` only.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from time import time_ns
from typing import Any, Final, Self, cast

from opentelemetry import trace
from opentelemetry.attributes import BoundedAttributes
from opentelemetry.context import Context
from opentelemetry.sdk.trace import Span, Tracer, TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, ParentBased
from opentelemetry.trace import Link, NonRecordingSpan, SpanContext, SpanKind, Status, StatusCode, TraceFlags

_SIMPLE: Final = frozenset({str, bool, int, float})
_INTERNAL_METRICS: Final = "OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED"
_ATTRIBUTES_MAX: Final = 128
"""The SDK's default; with any other limit the SDK's own provider is used."""
_NO_EVENTS: Final = ()
_UNSET: Final = Status(StatusCode.UNSET)


def suffices() -> bool:
    """Whether the environment asks for nothing that only the SDK's own way has: limits, its own metrics."""
    limited = any(name.startswith("OTEL_") and name.endswith("_LIMIT") for name in os.environ)
    return not limited and os.environ.get(_INTERNAL_METRICS, "").lower() != "true"


def provider(resource: Any) -> TracerProvider:
    """A tracer provider for a role's process, set up by the `OTEL_*` variables."""
    return LeanTracerProvider(resource=resource) if suffices() else TracerProvider(resource=resource)


class LeanTracerProvider(TracerProvider):
    """See the module."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._by_name: dict[tuple[str, str | None, str | None], trace.Tracer] = {}

    def get_tracer(  # noqa: D102 — inherited
        self,
        instrumenting_module_name: str,
        instrumenting_library_version: str | None = None,
        schema_url: str | None = None,
        attributes: Any = None,
    ) -> trace.Tracer:
        if attributes:
            return super().get_tracer(
                instrumenting_module_name, instrumenting_library_version, schema_url, attributes
            )
        name = (instrumenting_module_name, instrumenting_library_version, schema_url)
        known = self._by_name.get(name)
        if known is None:
            made = super().get_tracer(*name)
            known = self._by_name[name] = LeanTracer(made) if isinstance(made, Tracer) else made
        return known


class LeanTracer(Tracer):
    """See the module.

    Args:
        like: The SDK's tracer of the same name.
    """

    def __init__(self, like: Tracer) -> None:
        vars(self).update(vars(like))
        self._goes_by_parent = _goes_by_parent(self.sampler)

    def start_span(  # noqa: D102 — inherited
        self,
        name: str,
        context: Context | None = None,
        kind: SpanKind = SpanKind.INTERNAL,
        attributes: Mapping[str, Any] | None = None,
        links: Sequence[Link] | None = (),
        start_time: int | None = None,
        record_exception: bool = True,
        set_status_on_exception: bool = True,
    ) -> trace.Span:
        parent = trace.get_current_span(context).get_span_context()
        if not parent.is_valid or not self._goes_by_parent or not self._is_enabled():
            # A root, mostly: the sampler decides.
            return super().start_span(
                name, context, kind, attributes, links, start_time, record_exception, set_status_on_exception
            )
        about = SpanContext(
            parent.trace_id,
            self.id_generator.generate_span_id(),
            is_remote=False,
            trace_flags=TraceFlags(parent.trace_flags & 3),
            trace_state=parent.trace_state,
        )
        if not parent.trace_flags.sampled:
            return NonRecordingSpan(about)
        span = LeanSpan(self, name, about, parent, kind, attributes, links)
        span.note_exceptions(record=record_exception, fails=set_status_on_exception)
        span.begin(start_time, context)
        return span


def _goes_by_parent(sampler: Any) -> bool:
    """Whether a span with a parent is sampled just if its parent is."""
    if not isinstance(sampler, ParentBased) or type(sampler).should_sample is not ParentBased.should_sample:
        return False
    chosen = vars(sampler)
    return all(
        chosen.get(f"_{place}_parent_sampled") is ALWAYS_ON
        and chosen.get(f"_{place}_parent_not_sampled") is ALWAYS_OFF
        for place in ("remote", "local")
    )


class LeanSpan(Span):
    """See the module."""

    # Shared by all: held for less than a microsecond, at a span's end and for events and links added later.
    _lock = threading.Lock()
    _ended_lock = threading.Lock()

    def __init__(  # the SDK's own does what is to be left out
        self,
        tracer: LeanTracer,
        name: str,
        context: SpanContext,
        parent: SpanContext,
        kind: SpanKind,
        attributes: Mapping[str, Any] | None,
        links: Sequence[Link] | None,
    ) -> None:
        self._name = name
        self._context = context
        self._parent = parent
        self._kind = kind
        self._resource = tracer.resource
        self._instrumentation_info = tracer.instrumentation_info
        self._instrumentation_scope = tracer._instrumentation_scope  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
        self._span_processor = tracer.span_processor
        self._limits = tracer._span_limits  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
        self._start_time = self._end_time = None
        self._status = _UNSET
        self._record_exception = self._set_status_on_exception = True
        self._events: Any = _NO_EVENTS
        self._links: Any = self._new_links(links) if links else _NO_EVENTS
        self._dropped = 0
        self._plain: dict[str, Any] = {}
        self._attributes = cast("Any", self._plain)
        if attributes:
            self._put(attributes)

    def __new__(cls, *_arguments: Any, **_more: Any) -> Self:
        """The SDK's has an opinion on who may make spans."""
        return object.__new__(cls)

    @property
    def dropped_attributes(self) -> int:
        """Those beyond the limit, and those that are none."""
        return self._dropped

    def note_exceptions(self, *, record: bool, fails: bool) -> None:
        """What becomes of an exception that leaves the span's ``with`` block."""
        self._record_exception, self._set_status_on_exception = record, fails

    def begin(self, start_time: int | None, context: Context | None) -> None:
        """Tell the processors that it has begun."""
        self._start_time = time_ns() if start_time is None else start_time
        self._span_processor.on_start(self, parent_context=context)

    def set_attribute(self, key: str, value: Any) -> None:  # noqa: D102 — inherited
        self.set_attributes({key: value})

    def set_attributes(self, attributes: Mapping[str, Any]) -> None:  # noqa: D102 — inherited
        # What an ended span is told comes too late, as in the SDK.
        if self._end_time is None:
            self._put(attributes)

    def add_event(  # noqa: D102 — inherited
        self, name: str, attributes: Any = None, timestamp: int | None = None
    ) -> None:
        if self._end_time is None:
            if self._events is _NO_EVENTS:
                self._events = self._new_events()
            super().add_event(name, attributes, timestamp)

    def add_link(self, context: SpanContext, attributes: Any = None) -> None:  # noqa: D102 — inherited
        if self._end_time is None:
            if self._links is _NO_EVENTS:
                self._links = self._new_links(())
            super().add_link(context, attributes)

    def update_name(self, name: str) -> None:  # noqa: D102 — inherited
        if self._end_time is None:
            self._name = name

    def set_status(self, status: Status | StatusCode, description: str | None = None) -> None:  # noqa: D102
        code = status.status_code if isinstance(status, Status) else status
        if self._end_time is None and code is not StatusCode.UNSET and not self._is_ok():
            self._status = status if isinstance(status, Status) else Status(status, description)

    def end(self, end_time: int | None = None) -> None:  # noqa: D102 — inherited
        with self._ended_lock:
            if self._end_time is not None:
                return
            self._end_time = time_ns() if end_time is None else end_time
        processor = self._span_processor
        processor._on_ending(self)  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
        processor.on_end(self)

    def _is_ok(self) -> bool:
        return self._status.status_code is StatusCode.OK

    def _put(self, attributes: Mapping[str, Any]) -> None:
        plain = self._plain
        for key, value in cast("Mapping[Any, Any]", attributes).items():
            if type(key) is str and type(value) in _SIMPLE and key and len(plain) < _ATTRIBUTES_MAX:
                plain[key] = value
            else:
                self._put_unusual(key, value)

    def _put_unusual(self, key: Any, value: Any) -> None:
        plain = self._plain
        # Agent Framework's names are members of an enumeration of texts: their text alone is exported.
        if type(key) is not str and isinstance(key, str):
            key = str.__str__(key)
        if isinstance(value, str) and type(value) is not str:
            value = str.__str__(value)
        if len(plain) >= _ATTRIBUTES_MAX and key not in plain:
            self._dropped += 1
        elif type(value) in _SIMPLE and type(key) is str and key:
            plain[key] = value
        else:
            # The SDK knows what is allowed, and says so in its log.
            allowed = BoundedAttributes(attributes={key: value}, immutable=True)
            self._dropped += allowed.dropped
            plain.update(allowed)
