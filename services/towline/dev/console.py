"""The merged log: one line of one part at a time, with its name before it."""

from __future__ import annotations

import sys
import threading
from typing import Final, TextIO

_LABEL_WIDTH: Final = 9
_COLOURS: Final = (36, 33, 32, 35, 34, 31)
_RESET: Final = "\x1b[0m"


class Console:
    """Writes labelled lines. Safe from any thread; a reader that went away never stops the stack."""

    def __init__(self, stream: TextIO | None = None, *, quiet: bool = False) -> None:
        """Write to `stream` (default: standard output); `quiet` writes nothing but `say`."""
        self._stream = sys.stdout if stream is None else stream
        self._coloured = self._stream.isatty()
        self._colours: dict[str, int] = {}
        self._lock = threading.Lock()
        self._quiet = quiet
        self._gone = False

    def line(self, name: str, text: str) -> None:
        """One line of the part `name`. A `LineSink`."""
        if not self._quiet:
            self._write(f"{self._label(name)} {text}\n")

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
