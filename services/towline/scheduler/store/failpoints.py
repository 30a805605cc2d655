"""Named places where a test can make the process die or fail.

Armed by ``arm`` in a test, or by ``TOWLINE_SCHEDULER_FAILPOINTS`` (``name=kill``, ``name=error``, with
``@n`` for the n-th time: ``commit.before=kill@3``) in a child process. Unarmed, a failpoint is one
dictionary lookup.
"""

import os
import signal
from typing import Final, Literal, TypeAlias, get_args

Action: TypeAlias = Literal["kill", "error"]

_armed: Final[dict[str, tuple[Action, int]]] = {}


class FailpointError(Exception):
    """Raised by a failpoint that was armed with ``error``."""


def arm(name: str, action: Action, after: int = 1) -> None:
    """Make the ``after``-th pass through ``name`` act."""
    _armed[name] = (action, after)


def disarm() -> None:
    """Disarm all."""
    _armed.clear()


def arm_from(text: str) -> None:
    """Arm what a comma-separated list names.

    Raises:
        ValueError: An action is unknown.
    """
    for part in filter(None, text.split(",")):
        name, _, action = part.partition("=")
        action, _, after = action.partition("@")
        if action not in get_args(Action):
            raise ValueError(f"unknown failpoint action '{action}'")
        arm(name, "kill" if action == "kill" else "error", int(after or 1))


def hit(name: str) -> None:
    """Pass a failpoint."""
    armed = _armed.get(name)
    if armed is None:
        return
    action, after = armed
    if after > 1:
        _armed[name] = (action, after - 1)
        return
    del _armed[name]
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    raise FailpointError(name)
