"""`towline`, the command line."""

import errno
import io
import os
import sys
from collections.abc import Sequence

_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the `towline` script and of `python -m` of a role.

    Args:
        arguments: Of the command line; default: this process's. Others begin with a role.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    _open_what_is_closed()
    stdout: object = sys.stdout
    if isinstance(stdout, io.TextIOWrapper):
        # What a terminal or pipe of another encoding cannot show is escaped, as on standard error.
        stdout.reconfigure(errors="backslashreplace")
    if arguments[:1] == ["health"]:  # runs every few seconds in every container
        from towline.cli.health import health

        raise SystemExit(health(list(arguments[1:])))
    try:
        from towline.cli.roles import run_named_role

        if run_named_role(arguments):
            return
        from towline.cli.app import run

        run()
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
            raise
        # What is still to be written would fail once more at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        raise SystemExit(
            f"towline: the output cannot be written: {error.strerror}: make room for it"
        ) from None
    except KeyboardInterrupt:  # while modules are loaded; later each command has its own way
        raise SystemExit(_INTERRUPTED) from None
    except ModuleNotFoundError as error:
        if error.name not in {"typer", "rich", "httpx"}:
            raise
        raise SystemExit(f"the towline command needs {error.name}: pip install 'towline[cli]'") from None


def _open_what_is_closed() -> None:
    """Started with `>&-` or `2>&-`, output is for nobody, and no file or socket may take its number."""
    streams: tuple[object, ...] = (sys.stdin, sys.stdout, sys.stderr)
    if all(stream is not None for stream in streams):
        return
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(number, True)
    os.close(number)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - for the process's life


__all__ = ["main"]
