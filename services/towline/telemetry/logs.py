"""Logs: JSON lines for machines, one readable line on a terminal.

A log call's message is a constant event name; what varies goes into `extra`. So a line can be
queried by its fields, and nothing from a topic is ever pasted into text that a terminal interprets.
Lines name the run that the code works for (`towline.telemetry.runs`), and the current trace and span.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any, Final

from opentelemetry import trace

from towline.telemetry.runs import RunFields

_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_LOUD: Final = {"aiokafka": logging.CRITICAL, "httpx": logging.WARNING, "azure": logging.WARNING}


def _extra(record: logging.LogRecord) -> dict[str, Any]:
    return {name: value for name, value in vars(record).items() if name not in _STANDARD}


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, str | int)


def _repr(value: object) -> str:
    try:
        return repr(value)
    except Exception as error:  # noqa: BLE001 - somebody else's code
        return f"<{type(value).__name__} without repr: {type(error).__name__}>"


def _printable(line: str) -> str:
    return line if line.isprintable() else line.encode("unicode_escape").decode("ascii")


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, event, logger, the record's extra fields, trace ids."""

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line of JSON."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "service": self._service,
            "logger": record.name,
            "event": record.getMessage(),
        }
        # An app's own field may have one of these names; what a line is found by stays what it is.
        line |= {f"{name}_" if name in line else name: value for name, value in _extra(record).items()}
        context = trace.get_current_span().get_span_context()
        if context.is_valid:
            line["trace_id"] = format(context.trace_id, "032x")
            line["span_id"] = format(context.span_id, "016x")
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        try:
            return json.dumps(line, ensure_ascii=False, allow_nan=False, default=repr)
        except Exception:  # noqa: BLE001 - NaN, a key that is no text, a loop, a repr that raises: log it all the same
            plain = {name: value if _is_plain(value) else _repr(value) for name, value in line.items()}
            return json.dumps(plain, ensure_ascii=False)


class HumanFormatter(logging.Formatter):
    """``12:00:00.123 info  event  field=value …`` for a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as one readable line, control characters escaped."""
        time = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S.%f")[:-3]
        fields = " ".join(f"{name}={_repr(value)}" for name, value in _extra(record).items())
        line = f"{time} {record.levelname.lower():<7} {_printable(record.getMessage())}"
        line = f"{line}  {fields}" if fields else line
        if record.exc_info:
            # Its message may hold what came from a topic.
            trace = self.formatException(record.exc_info).expandtabs().split("\n")
            line = "\n".join([line, *(f"  {_printable(part)}" for part in trace)])
        return line


def configure_logging(service: str, *, level: str = "INFO", json_lines: bool | None = None) -> None:
    """Send all logs to standard error.

    Args:
        service: Written into each JSON line.
        level: Lowest level of Towline's own logs; libraries log from WARNING.
        json_lines: JSON or human format; by default JSON unless standard error is a terminal.
    """
    as_json = not sys.stderr.isatty() if json_lines is None else json_lines
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(service) if as_json else HumanFormatter())
    handler.addFilter(RunFields())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("towline").setLevel(level.upper())
    for name, lowest in _LOUD.items():
        logging.getLogger(name).setLevel(lowest)
