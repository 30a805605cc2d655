"""Fetch the systems that `benchmarks/run.py` compares with: ``python benchmarks/install.py [NAME …]``.

Everything goes into the user's cache folder: a Python environment made by the interpreter that runs this,
Restate's server (from its npm packages) and Temporal's (built by Go). PostgreSQL is the machine's: Debian's
package ``postgresql``.
What cannot be had is said, and the others are installed all the same.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

if __name__ == "__main__":  # `python benchmarks/install.py` puts its own folder on the path, not the root
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.end_to_end import interpreter
from benchmarks.end_to_end.installed import FOLDER, POSTGRES_HINT, postgres_programs, python

RESTATE: Final = "@restatedev/restate-server@1.7.12"
TEMPORAL: Final = "github.com/temporalio/cli/cmd/temporal@v1.5.1"
"""The newest that `go install` builds: later ones replace a module of theirs by a folder beside it."""
_REQUIREMENTS: Final = Path(__file__).resolve().parent / "requirements.txt"


class InstallError(Exception):
    """Something cannot be had here; the message says what is missing."""


def packages() -> None:
    """The Python packages, in an environment of their own, of the build of Python that runs this."""
    ours, theirs = interpreter.this(), interpreter.of(python())
    if theirs is None or theirs.build != ours.build:
        if theirs is not None:
            print(f"packages: made anew: the environment was of Python {theirs}, this is {ours}", flush=True)
        _run([sys.executable, "-m", "venv", "--clear", str(FOLDER / "venv")])
    _run([str(python()), "-m", "pip", "install", "--quiet", "--requirement", str(_REQUIREMENTS)])


def restate() -> None:
    """Restate's server: npm's optional dependencies bring the one for this platform."""
    folder = FOLDER / "npm"
    folder.mkdir(parents=True, exist_ok=True)
    _run(["npm", "install", "--no-audit", "--no-fund", "--prefix", str(folder), RESTATE])


def temporal() -> None:
    """Temporal's command line, which holds its development server. Takes minutes to build."""
    _run(["go", "install", TEMPORAL], {**os.environ, "GOBIN": str(FOLDER / "bin")})


def postgres() -> None:
    """Only looked for: it is the machine's."""
    if postgres_programs() is None:
        raise InstallError(POSTGRES_HINT)


STEPS: Final[Mapping[str, Callable[[], None]]] = {
    "packages": packages,
    "restate": restate,
    "postgres": postgres,
    "temporal": temporal,
}


def _run(command: list[str], env: Mapping[str, str] | None = None) -> None:
    if shutil.which(command[0]) is None:
        raise InstallError(f"{command[0]} is not installed")
    FOLDER.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise InstallError(f"{' '.join(command)}: {(done.stderr or done.stdout).strip()[-500:]}")


def main() -> int:
    """Install what is asked for, or all; 1 if something failed."""
    wanted = sys.argv[1:] or list(STEPS)
    if unknown := [name for name in wanted if name not in STEPS]:
        print(f"unknown: {', '.join(unknown)}; choose from {', '.join(STEPS)}", file=sys.stderr)
        return 2
    failed = False
    for name in wanted:
        try:
            STEPS[name]()
            print(f"{name}: installed")
        except InstallError as error:
            failed = True
            print(f"{name}: not to be had: {error}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
