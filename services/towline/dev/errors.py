"""Errors of the local stack. Each message is one line that names the fix.

```
DevError
├── MissingToolError      a program that the stack needs is not installed
├── DistributionError     Kafka's jars could not be fetched or prepared
├── AddressInUseError     a part's port is taken by a process that is not ours
├── WrongSettingError     a TOWLINE_* variable holds what it may not
├── PartFailedError       a part ended or was not ready in time (carries its last lines)
├── UnusablePathError     a folder or file that was named cannot be written
└── AlreadyRunningError   another `towline dev` uses the same data folder
```
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

LINES_SHOWN = 8
"""Lines of a part's output in a message."""


class DevError(Exception):
    """Base of the local stack's errors."""


class MissingToolError(DevError):
    """A program that the stack needs is not installed."""

    def __init__(self, tool: str, *, needed_for: str, fix: str) -> None:
        super().__init__(f"{tool} is missing ({needed_for}): {fix}")
        self.tool = tool


class DistributionError(DevError):
    """Kafka's jars could not be fetched or prepared."""


class AddressInUseError(DevError):
    """A port that a part needs is taken by another process."""

    def __init__(self, part: str, port: int) -> None:
        super().__init__(
            f"{part}: 127.0.0.1:{port} is taken by another process: stop it, or choose another port"
        )
        self.part = part
        self.port = port


class WrongSettingError(DevError):
    """A variable holds what it may not. Its value is not shown: it may be a secret."""

    def __init__(self, error: ValidationError) -> None:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in (error.title, *first["loc"]))
        super().__init__(f"{field}: {first['msg']}: see `towline settings`")


class PartFailedError(DevError):
    """A part ended, or was not ready in time.

    Attributes:
        part: Its name.
        last_lines: The last lines of its output.
    """

    def __init__(self, part: str, what: str, last_lines: Sequence[str] = ()) -> None:
        tail = "".join(f"\n  {line}" for line in last_lines[-LINES_SHOWN:])
        super().__init__(f"{part} {what}{'; its last lines:' if tail else ''}{tail}")
        self.part = part
        self.last_lines = tuple(last_lines)


class UnusablePathError(DevError):
    """A folder or file that was named on the command line cannot be written."""

    def __init__(self, option: str, path: Path, error: OSError) -> None:
        fix = "name one in a folder that is there and yours"
        super().__init__(f"{option} {path}: cannot be written ({error.strerror}): {fix}")


class AlreadyRunningError(DevError):
    """Another `towline dev` uses the same data folder."""

    def __init__(self, data: Path) -> None:
        super().__init__(f"another towline dev runs on {data}: stop it, or give --data another folder")
        self.data = data
