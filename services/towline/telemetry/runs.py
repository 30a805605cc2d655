"""Which run this code works for: on every span and log line, and in the baggage that goes out with calls.

Set where work for a run begins (`in_run`, or `bind` where the end of the work is the end of the task). Read
by `RunFields` for logs and `RunAttributes` for spans.
"""

from __future__ import annotations

import logging
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final, cast

from opentelemetry import baggage
from opentelemetry import context as otel_context
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor

from towline.contracts.tracing import tracing_is_on
from towline.telemetry import conventions

_DURABLETASK: Final = "durabletask"


@dataclass(frozen=True, slots=True)
class RunRef:
    """The run, as the world knows it."""

    run_id: str
    run_type: str | None = None
    session_id: str | None = None
    turn: str | None = None
    """Number of the agent call, in an agent's turn."""

    def attributes(self) -> dict[str, str]:
        """As span attributes and baggage entries."""
        named = (
            (conventions.RUN_ID, self.run_id),
            (conventions.RUN_TYPE, self.run_type),
            (conventions.SESSION_ID, self.session_id),
            (conventions.TURN, self.turn),
        )
        return {name: value for name, value in named if value is not None}


_current: ContextVar[RunRef | None] = ContextVar("towline_run", default=None)


def current_run() -> RunRef | None:
    """The run that the current context works for."""
    return _current.get()


def bind(run: RunRef, *, calls_out: bool = True) -> None:
    """Work for `run` from now on, until the task (or the `scope`) ends.

    Args:
        run: The run.
        calls_out: The work may call other services, which are to get the baggage.
    """
    _current.set(run)
    if calls_out and tracing_is_on():
        otel_context.attach(_with_baggage(run))


@contextmanager
def scope() -> Generator[None]:
    """Ends at its end what `bind` began within: for threads that work for one run after another."""
    token = _current.set(None)
    before = otel_context.get_current()
    try:
        yield
    finally:
        _current.reset(token)
        otel_context.attach(before)


@contextmanager
def in_run(run: RunRef) -> Generator[None]:
    """Work for `run` while the block runs."""
    token = _current.set(run)
    attached = otel_context.attach(_with_baggage(run)) if tracing_is_on() else None
    try:
        yield
    finally:
        if attached is not None:
            otel_context.detach(attached)
        _current.reset(token)


def _with_baggage(run: RunRef) -> Context:
    context = otel_context.get_current()
    for name, value in run.attributes().items():
        if name != conventions.TURN:
            context = baggage.set_baggage(name, value, context)
    return context


class RunAttributes(SpanProcessor):
    """Puts the current run on every span. Goes before the processors that export."""

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """A span begins."""
        del parent_context
        run = _current.get()
        if run is not None:
            span.set_attributes(run.attributes())

    def on_end(self, span: ReadableSpan) -> None:
        """A span has ended: those that the Durable Task SDK makes afterwards never began."""
        run = _current.get()
        scope_of = span.instrumentation_scope
        if run is None or scope_of is None or scope_of.name != _DURABLETASK:
            return
        attributes = span._attributes  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
        if isinstance(attributes, dict) and conventions.RUN_ID not in attributes:
            cast("dict[str, object]", attributes).update(run.attributes())


class RunFields(logging.Filter):
    """Adds the current run to log records that do not name one themselves."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Lets every record pass."""
        run = _current.get()
        if run is not None:
            for name in ("run_id", "run_type", "session_id"):
                value = getattr(run, name)
                if value is not None and not hasattr(record, name):
                    setattr(record, name, value)
        return True
