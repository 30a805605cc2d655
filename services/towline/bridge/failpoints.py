"""Named places where a test can make a bridge die, as `kill -9` at just that point would.

Armed by ``TOWLINE_BRIDGE_FAILPOINTS``: ``answer.published@2`` dies at the second pass. Unarmed, a
failpoint is one dictionary lookup.
"""

from __future__ import annotations

import os
import signal
from typing import Final

_armed: Final[dict[str, int]] = {}


def arm_from(text: str) -> None:
    """Arm what a comma-separated list of ``name`` or ``name@n`` says.

    Raises:
        ValueError: An n is no number.
    """
    for part in filter(None, text.split(",")):
        name, _, nth = part.partition("@")
        _armed[name] = int(nth or 1)


def hit(name: str) -> None:
    """Pass a failpoint."""
    left = _armed.get(name)
    if left is None:
        return
    if left > 1:
        _armed[name] = left - 1
        return
    os.kill(os.getpid(), signal.SIGKILL)
