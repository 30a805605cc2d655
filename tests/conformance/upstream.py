"""Run durabletask-python's end-to-end suites, unmodified, against the scheduler.

The suites are not part of this repository: give a checkout of durabletask-python by ``--source`` or by the
variable ``TOWLINE_UPSTREAM_SUITE``. Only its tests are copied, to a temporary folder; the SDK that runs is
the installed one. What follows ``--`` goes to pytest.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tests.conformance.processes import ROOT, ServerProcess, scheduler_command

SOURCE_VARIABLE: Final = "TOWLINE_UPSTREAM_SUITE"
CORE: Final = "durabletask"
MANAGED: Final = "durabletask-azuremanaged"
# These reach into the in-memory backend's own fields: they test that class, not the protocol.
ABOUT_THE_MEMORY_BACKEND: Final = frozenset({"test_delayed_signal_normalization.py"})
INI: Final = """[pytest]
asyncio_mode = auto
markers =
    azurite: needs a local Azure Storage
    dts: needs a scheduler
    functions_e2e: needs Azure Functions
"""


def end_to_end_files(source: Path, suite: str) -> list[str]:
    """The files of a suite that need a server, relative to ``source``."""
    root = source / "tests" / suite
    if suite == MANAGED:
        files = root.rglob("test_dts_*.py")
    else:
        files = (
            path
            for path in root.rglob("test_*.py")
            if "create_test_backend" in path.read_text() and path.name not in ABOUT_THE_MEMORY_BACKEND
        )
    return sorted(str(path.relative_to(source)) for path in files)


def run(source: Path, suite: str, pytest_arguments: Sequence[str] = ()) -> int:
    """Run one suite to its end and return pytest's exit status."""
    files = end_to_end_files(source, suite)
    if not files:
        raise SystemExit(
            f"{source} has no end-to-end tests in tests/{suite}: is it a durabletask-python checkout?"
        )
    with tempfile.TemporaryDirectory(prefix="towline-upstream-") as name:
        folder = Path(name)
        shutil.copytree(source / "tests", folder / "tests")
        (folder / "pytest.ini").write_text(INI)
        shutil.copy(Path(__file__).with_name("upstream_plugin.py"), folder / "towline_upstream_plugin.py")
        environment = {
            **os.environ,
            "PYTHONPATH": name,
            "TOWLINE_UPSTREAM_DATA": name,
            "TOWLINE_UPSTREAM_ROOT": str(ROOT),
            "TOWLINE_UPSTREAM_SERVER": json.dumps(scheduler_command()),
            "TASKHUB": "default",
        }
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "towline_upstream_plugin",
            "-p",
            "no:cacheprovider",
        ]
        if suite == CORE:
            return _pytest([*command, *files, *pytest_arguments], folder, environment)
        with ServerProcess(folder / "managed") as server:
            environment["ENDPOINT"] = f"http://{server.address}"
            return _pytest([*command, *files, *pytest_arguments], folder, environment)


def _pytest(command: Sequence[str], folder: Path, environment: dict[str, str]) -> int:
    return subprocess.run(command, cwd=folder, env=environment, check=False).returncode


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.conformance.upstream", description=__doc__)
    given = os.environ.get(SOURCE_VARIABLE)
    parser.add_argument(
        "--source", type=Path, default=Path(given) if given else None, help=f"or set {SOURCE_VARIABLE}"
    )
    parser.add_argument("--suite", choices=[CORE, MANAGED, "all"], default="all")
    parser.add_argument("pytest_arguments", nargs="*", metavar="-- PYTEST ARGUMENT")
    arguments = parser.parse_args()
    if arguments.source is None:
        parser.error(f"give a checkout of durabletask-python by --source or {SOURCE_VARIABLE}")
    suites = [CORE, MANAGED] if arguments.suite == "all" else [arguments.suite]
    statuses = [run(arguments.source, suite, arguments.pytest_arguments) for suite in suites]
    return max(statuses)


if __name__ == "__main__":
    sys.exit(main())
