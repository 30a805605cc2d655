"""The merged log: one line of one part at a time, with its name before it.

Towline's parts log JSON lines when their output is no terminal, as here; they are shown in a readable
form, unless JSON is asked for.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
from collections.abc import Callable
from datetime import datetime
from typing import Any, Final, TextIO, cast

_LABEL_WIDTH: Final = 9
_COLOURS: Final = (36, 33, 32, 35, 34, 31)
_HIDDEN: Final = frozenset({"service", "logger", "trace_id", "span_id"})
_RECORD_FIELDS: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "taskName"}
_RESET: Final = "\x1b[0m"


class Console:
    """Writes labelled lines. Safe from any thread; a reader that went away never stops the stack."""

    def __init__(self, stream: TextIO | None = None, *, quiet: bool = False, as_json: bool = False) -> None:
        """Write to `stream` (default: standard output).

        Args:
            stream: Where to.
            quiet: Write nothing but `say`.
            as_json: Leave JSON lines as they are.
        """
        self._as_json = as_json
        self._stream = sys.stdout if stream is None else stream
        self._coloured = self._stream.isatty()
        self._colours: dict[str, int] = {}
        self._lock = threading.Lock()
        self._quiet = quiet
        self._gone = False

    def line(self, name: str, text: str) -> None:
        """One line of the part `name`. A `LineSink`."""
        if not self._quiet:
            shown = text if self._as_json else readable(text)
            self._write("".join(f"{self._label(name)} {line}\n" for line in shown.split("\n")))

    def say(self, text: str) -> None:
        """Text of the stack itself, for the person in front of it."""
        self._write(f"{text}\n")

    def _label(self, name: str) -> str:
        label = f"{name:<{_LABEL_WIDTH}} |"
        if not self._coloured:
            return label
        colour = self._colours.setdefault(name, _COLOURS[len(self._colours) % len(_COLOURS)])
        return f"\x1b[{colour}m{label}{_RESET}"

    def _write(self, text: str) -> None:
        with self._lock:
            if self._gone:
                return
            try:
                self._stream.write(text)
                self._stream.flush()
            except (OSError, ValueError):  # closed terminal or pipe: the parts' output is still drained
                self._gone = True


class LogLines(logging.Handler):
    """Writes this process's own log records as lines of the console: that Kafka is being fetched, say."""

    def __init__(self, write: Callable[[str], None]) -> None:
        super().__init__(logging.INFO)
        self._write = write

    def emit(self, record: logging.LogRecord) -> None:
        """One record, with its fields."""
        fields = {name: value for name, value in vars(record).items() if name not in _RECORD_FIELDS}
        shown = " ".join(f"{name}={value}" for name, value in fields.items())
        self._write(_escaped(f"{record.getMessage()}  {shown}".rstrip()))

    def install(self) -> None:
        """Take what Towline logs here; libraries log nothing."""
        logging.basicConfig(level=logging.CRITICAL, handlers=[logging.NullHandler()], force=True)
        logger = logging.getLogger("towline")
        logger.handlers[:] = [self]
        logger.setLevel(logging.INFO)
        logger.propagate = False


def readable(text: str) -> str:
    """A JSON log line as ``12:00:00.123 info  event  field=value``; any other line as it is.

    A line holds what came from topics: its control characters are escaped, the line breaks of a
    traceback excepted.
    """
    record = _record(text)
    if record is None:
        return _escaped(text)
    time, level, event = _clock(record.pop("time", None)), record.pop("level", ""), record.pop("event")
    exception = record.pop("exception", None)
    fields = " ".join(f"{name}={_value(value)}" for name, value in record.items() if name not in _HIDDEN)
    line = _escaped(f"{time} {level!s:<7} {event}  {fields}".rstrip())
    if not isinstance(exception, str):
        return line
    return "\n".join([line, *(_escaped(part) for part in exception.splitlines())])


def _record(text: str) -> dict[str, Any] | None:
    if not text.startswith("{"):
        return None
    try:
        record: object = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if isinstance(record, dict) and isinstance(cast("dict[str, Any]", record).get("event"), str):
        return cast("dict[str, Any]", record)
    return None


def _clock(time: object) -> str:
    try:
        return datetime.fromisoformat(str(time)).astimezone().strftime("%H:%M:%S.%f")[:-3]
    except ValueError:
        return "--:--:--.---"


def _value(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _escaped(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() or character == "\t" else repr(character)[1:-1]
        for character in text
    )
