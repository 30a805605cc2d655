"""Errors of the command line: one line that names the fix, and an exit code.

```
CliError            exit code 1: it did not work
└── UsageError      exit code 2: the command line is wrong
```
"""

from __future__ import annotations

from typing import ClassVar


class CliError(Exception):
    """It did not work; the message is one line that names the fix."""

    exit_code: ClassVar[int] = 1


class UsageError(CliError):
    """The command line is wrong."""

    exit_code: ClassVar[int] = 2
