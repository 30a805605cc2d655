"""How a Python interpreter was built: without optimizations it takes about 1.3 times the CPU for the same.

Also a script that any interpreter runs to tell of itself. Imports nothing of this package.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import sysconfig
from dataclasses import asdict, dataclass
from pathlib import Path

_DEBIAN_SCHEME = "deb_system"
"""Debian and what descends from it patch this installation scheme into theirs."""


@dataclass(frozen=True, slots=True)
class Interpreter:
    """One interpreter, as far as it decides what a run costs."""

    version: str
    optimizations: tuple[str, ...]
    """``PGO``, ``LTO``."""
    build: str
    """The same for two interpreters only if they are of one build."""

    def __str__(self) -> str:
        return f"{self.version} ({', '.join(self.optimizations) or 'built without optimizations'})"


def optimizations(configured: str, *, debian: bool) -> tuple[str, ...]:
    """What a build was optimized by.

    Args:
        configured: The arguments of its ``configure``.
        debian: It is of Debian's packages, which do both behind ``configure`` and keep it from sysconfig.
    """
    flags = {"PGO": "--enable-optimizations", "LTO": "--with-lto"}
    return tuple(name for name, flag in flags.items() if debian or flag in configured)


def this() -> Interpreter:
    """The one that runs this."""
    configured = str(sysconfig.get_config_var("CONFIG_ARGS") or "")
    debian = _DEBIAN_SCHEME in sysconfig.get_scheme_names()
    return Interpreter(
        version=platform.python_version(),
        optimizations=optimizations(configured, debian=debian),
        build=f"{sys.version} {configured}",
    )


def of(python: Path) -> Interpreter | None:
    """That of another environment; None: it does not run."""
    try:
        done = subprocess.run([python, __file__], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    told = json.loads(done.stdout)
    return Interpreter(told["version"], tuple(told["optimizations"]), told["build"])


if __name__ == "__main__":
    print(json.dumps(asdict(this())))
