"""Go programs that tests need, built once per version of their sources and cached."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Final

from towline.dev.cache import cache_folder

DEPLOY: Final = Path(__file__).parents[3] / "deploy"
BUILD_TIMEOUT_S: Final = 900


class NoProgramError(Exception):
    """The program can't be had on this machine; the message says why."""


def built(name: str, source: Path, files: Sequence[str], package: str = ".", *, tags: str = "") -> Path:
    """The executable of `package`, as `source` pins it.

    Raises:
        NoProgramError: There is no Go, or the build failed.
    """
    content = b"".join((source / file).read_bytes() for file in files) + package.encode() + tags.encode()
    binary = cache_folder() / f"{name}-{sha256(content).hexdigest()[:12]}"
    if binary.exists():
        return binary
    go = shutil.which("go")
    if go is None:
        raise NoProgramError(f"building {name} needs Go 1.25 or newer on PATH")
    building = binary.with_suffix(f".{os.getpid()}")
    done = subprocess.run(
        [go, "build", "-trimpath", f"-tags={tags}", "-ldflags=-s -w", "-o", building, package],
        cwd=source,
        env={**os.environ, "CGO_ENABLED": "0"},
        capture_output=True,
        text=True,
        timeout=BUILD_TIMEOUT_S,
        check=False,
    )
    if done.returncode != 0:
        raise NoProgramError(f"go build failed: {done.stderr.strip()[-500:]}")
    building.replace(binary)
    return binary
