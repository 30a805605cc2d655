"""Spans of what the relay does: events that it has applied, and the commands that it takes by HTTP."""

from __future__ import annotations

import time
from typing import Final

from opentelemetry import trace
from opentelemetry.trace import SpanKind, StatusCode
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from towline.contracts import tracing
from towline.contracts.tracing import context_from, tracing_is_on
from towline.relay.projection import Change
from towline.telemetry import conventions
from towline.telemetry.propagation import in_trace

_tracer: Final = trace.get_tracer("towline.relay")
_NOT_OURS: Final = 500


def note_applied(change: Change, partition: str, offset: int, began_ns: int, *, group: str) -> None:
    """An event was applied, with others in one step: its span is in the event's own trace.

    Args:
        change: What it changed.
        partition: ``topic:number``.
        offset: The record's.
        began_ns: When the record was taken up, Unix time in ns.
        group: The consumer group.
    """
    if change.traceparent is None or not tracing_is_on():
        return
    topic, _, number = partition.rpartition(":")
    attributes = {
        tracing.SYSTEM: "kafka",
        tracing.OPERATION_NAME: "process",
        tracing.OPERATION_TYPE: "process",
        tracing.DESTINATION: topic,
        tracing.PARTITION: number,
        tracing.OFFSET: offset,
        tracing.CONSUMER_GROUP: group,
        tracing.MESSAGE_ID: change.event_id,
        tracing.EVENT_TYPE: change.event_type,
        conventions.RUN_ID: change.run_id,
    }
    _tracer.start_span(
        f"process {topic}",
        context_from(change.traceparent),
        SpanKind.CONSUMER,
        attributes,
        start_time=began_ns,
    ).end(max(time.time_ns(), began_ns))


class TracedCommands:
    """ASGI middleware: a command (POST) goes on in the trace that its ``traceparent`` header names.

    With tracing set up it has a SERVER span of its own. Lookups and streams have none: a stream is open for
    as long as its reader likes.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        traceparent, tracestate = _header(scope, b"traceparent"), _header(scope, b"tracestate")
        if not tracing_is_on():
            with in_trace(traceparent, tracestate):
                await self._app(scope, receive, send)
            return
        attributes = {"http.request.method": "POST", "url.path": scope["path"], "url.scheme": scope["scheme"]}
        with _tracer.start_as_current_span(
            "POST", context_from(traceparent, tracestate), SpanKind.SERVER, attributes
        ) as span:

            async def noting(message: Message) -> None:
                if message["type"] == "http.response.start":
                    span.set_attribute("http.response.status_code", message["status"])
                    if message["status"] >= _NOT_OURS:
                        span.set_status(StatusCode.ERROR)
                await send(message)

            await self._app(scope, receive, noting)
            route = scope.get("route")
            if route is not None:
                span.update_name(f"POST {route.path}")
                span.set_attribute("http.route", route.path)


def _header(scope: Scope, name: bytes) -> str | None:
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name), None)
