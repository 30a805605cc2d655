"""What is printed: JSON lines for programs, one readable line an event for people."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Final, cast

from towline.contracts.events import (
    ApprovalRefused,
    ApprovalRequested,
    ApprovalResolved,
    ControlRefused,
    Event,
    EventData,
    RunCancelled,
    RunCompleted,
    RunFailed,
    RunProgressed,
    RunRejected,
    RunStarted,
)

SHOWN_CHARACTERS: Final = 200
"""Longer values are cut in the readable lines; ``--json`` shows all."""


def printable(text: str) -> str:
    """`text` with control characters escaped: what comes from a topic must not drive the terminal."""
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in text
    )


def short(value: Any, limit: int = SHOWN_CHARACTERS) -> str:
    """`value` on one line: text as it is, anything else as JSON."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    text = printable(text.replace("\n", " "))
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def output_text(output: Any) -> str:
    """A run's output on one line; an agent's answer, ``{"text": …}``, without its frame."""
    if isinstance(output, dict) and list(cast("dict[str, Any]", output)) == ["text"]:
        return short(cast("dict[str, Any]", output)["text"])
    return short(output)


def event_json(event: Event) -> dict[str, Any]:
    """An event as CloudEvents JSON: attributes and `data`."""
    attributes = {
        "id": event.id,
        "source": event.source,
        "type": event.type,
        "time": event.time.isoformat() if event.time else None,
        "subject": event.subject,
        "traceparent": event.traceparent,
    }
    return {
        "specversion": "1.0",
        **{name: value for name, value in attributes.items() if value is not None},
        **event.extensions,
        "data": event.data.model_dump(mode="json", exclude_none=True),
    }


def describe(data: EventData) -> str:
    """An event's data in a few words."""
    words = _DESCRIPTIONS.get(type(data))
    return words(data) if words is not None else short(data.model_dump(mode="json", exclude_none=True))


def event_line(event: Event, recorded: datetime) -> str:
    """One readable line; `recorded` is Kafka's time, for an event that carries none."""
    run_id = str(getattr(event.data, "run_id", None) or event.subject or "-")
    name = event.type.removeprefix("towline.").removesuffix(".v1")
    return f"{clock(event.time or recorded)}  {printable(run_id)}  {name}  {describe(event.data)}".rstrip()


def clock(time: datetime) -> str:
    """Local time of day."""
    return time.astimezone().strftime("%H:%M:%S")


class Printer:
    """Prints to standard output, as JSON lines or for people; flushes after each."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json

    def event(self, event: Event, recorded: datetime) -> None:
        """One event, written to Kafka at `recorded`."""
        self.line(json_line(event_json(event)) if self.as_json else event_line(event, recorded))

    def value(self, value: Mapping[str, Any], text: str) -> None:
        """`value` for programs, `text` for people."""
        self.line(json_line(value) if self.as_json else text)

    @staticmethod
    def line(text: str) -> None:
        """One line."""
        Printer.raw(f"{text}\n")

    @staticmethod
    def raw(text: str) -> None:
        """Text as it is."""
        sys.stdout.write(text)
        sys.stdout.flush()


def json_line(value: Mapping[str, Any]) -> str:
    """`value` as JSON on one line, in what standard output can be written in."""
    ascii_only = str(sys.stdout.encoding).replace("-", "").lower() != "utf8"
    return json.dumps(value, ensure_ascii=ascii_only, separators=(",", ":"))


def hint(text: str) -> None:
    """A line for people only: on standard error, and only if that is a terminal."""
    if sys.stderr.isatty():
        sys.stderr.write(f"{text}\n")


def warn(text: str) -> None:
    """A line on standard error."""
    sys.stderr.write(f"{text}\n")


def _requested(data: ApprovalRequested) -> str:
    title = short(data.title) if data.title else short(data.details) if data.details is not None else ""
    return f"{printable(data.approval_id)}  {title}".rstrip()


def _resolved(data: ApprovalResolved) -> str:
    by = f" by {printable(data.approver)}" if data.approver else ""
    why = f": {short(data.feedback)}" if data.feedback else ""
    return f"{printable(data.approval_id)}  {data.outcome}{by}{why}"


def _failed(data: RunFailed | RunRejected) -> str:
    return f"{printable(data.error.type)}: {short(data.error.message)}"


_DESCRIPTIONS: Final[Mapping[type[EventData], Callable[[Any], str]]] = {
    RunStarted: lambda data: printable(data.run_type),
    RunProgressed: lambda data: short(data.status),
    ApprovalRequested: _requested,
    ApprovalResolved: _resolved,
    ApprovalRefused: lambda data: f"{printable(data.approval_id)}  {data.reason}",
    ControlRefused: lambda data: f"{data.action}  {data.reason}",
    RunCompleted: lambda data: output_text(data.output),
    RunFailed: _failed,
    RunRejected: _failed,
    RunCancelled: lambda data: short(data.reason or ""),
}
