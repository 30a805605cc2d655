"""Run by path before a part's own program: ``python -I -S _launch.py PARENT_PID PROGRAM ARGUMENT…``.

Asks Linux to kill this process when its parent dies, however that happens, then becomes the
program; its pid stays the same. A launcher rather than `preexec_fn`, which is unsafe in a parent
with threads (gRPC's fork handlers among them).
"""

import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Arm the parent-death signal, restore the signals that Python ignores, exec."""
    parent, program = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before the signal was armed
        os._exit(1)
    for name in ("SIGPIPE", "SIGXFSZ"):
        signal.signal(getattr(signal, name), signal.SIG_DFL)
    os.execvp(program[0], program)  # noqa: S606 - that is what this file is for


main()
