"""Where the compared systems are, and whether they are there (`benchmarks/install.py` brings them)."""

from __future__ import annotations

import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Final

from benchmarks.end_to_end import interpreter

from towline.dev.cache import cache_folder

FOLDER: Final = cache_folder() / "bench"
ROOT: Final = Path(__file__).resolve().parents[2]
INSTALL_HINT: Final = "run `python benchmarks/install.py`"
POSTGRES_HINT: Final = "PostgreSQL is not installed: `apt-get install postgresql`"


def python() -> Path:
    """Interpreter of the compared systems' environment."""
    return FOLDER / "venv" / "bin" / "python"


def restate_server() -> Path | None:
    """Restate's server binary for this platform."""
    found = sorted(FOLDER.glob("npm/node_modules/@restatedev/restate-server-*/bin/restate-server"))
    return found[0] if found else None


def temporal() -> Path | None:
    """Temporal's command line."""
    program = FOLDER / "bin" / "temporal"
    return program if program.exists() else None


def postgres_programs() -> Path | None:
    """Folder of `initdb` and `postgres`, the newest version's."""
    if on_path := shutil.which("initdb"):
        return Path(on_path).resolve().parent
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=_major)
    return found[-1].parent if found else None


def _major(initdb: Path) -> int:
    return int(initdb.parts[-3].partition(".")[0])


def has_package(name: str) -> bool:
    """Whether the compared systems' environment has the package `name`."""
    return any(FOLDER.glob(f"venv/lib/python3*/site-packages/{name}/__init__.py"))


def python_environment() -> dict[str, str]:
    """Variables by which that environment finds the job's code: Towline is not installed in it."""
    return {"PYTHONPATH": f"{ROOT}:{ROOT / 'contracts'}:{ROOT / 'services'}"}


@cache
def other_build() -> str | None:
    """What is wrong if the compared systems run on another build of Python than this; None: nothing."""
    ours, theirs = interpreter.this(), interpreter.of(python())
    if theirs is None or theirs.build == ours.build:
        return None
    return (
        f"The compared systems run on another build of Python ({theirs}) than Towline ({ours}), which alone "
        f"makes a difference in CPU and speed: {INSTALL_HINT} by the interpreter that runs the benchmark"
    )


@cache
def versions() -> dict[str, str]:
    """Of the compared systems, by name."""
    found: dict[str, str] = {}
    if theirs := interpreter.of(python()):
        found["peers' python"] = str(theirs)
        names = ("calfkit", "confluent-kafka", "dbos", "hypercorn", "restate-sdk", "temporalio")
        script = f"import importlib.metadata as m\nfor n in {names!r}: print(n, m.version(n))"
        done = subprocess.run([str(python()), "-c", script], capture_output=True, text=True, check=False)
        pairs = (line.partition(" ") for line in done.stdout.splitlines())
        found.update({name: installed for name, _, installed in pairs})
    programs = {
        "restate-server": restate_server(),
        "temporal": temporal(),
        "postgres": (folder / "postgres") if (folder := postgres_programs()) else None,
    }
    for name, program in programs.items():
        if program is not None:
            done = subprocess.run([str(program), "--version"], capture_output=True, text=True, check=False)
            found[name] = done.stdout.strip().splitlines()[0] if done.stdout.strip() else "unknown"
    return found
