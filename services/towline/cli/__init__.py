"""`towline`, the command line."""

import io
import sys

_INTERRUPTED = 130


def main() -> None:
    """Entry point of the `towline` script."""
    stdout: object = sys.stdout  # None if it is closed
    if isinstance(stdout, io.TextIOWrapper):
        # What a terminal or pipe of another encoding cannot show is escaped, as on standard error.
        stdout.reconfigure(errors="backslashreplace")
    if sys.argv[1:2] == ["health"]:  # runs every few seconds in every container
        from towline.cli.health import health

        raise SystemExit(health(sys.argv[2:]))
    try:
        from towline.cli.roles import run_named_role

        if run_named_role(sys.argv[1:]):
            return
        from towline.cli.app import run

        run()
    except KeyboardInterrupt:  # while modules are loaded; later each command has its own way
        raise SystemExit(_INTERRUPTED) from None
    except ModuleNotFoundError as error:
        if error.name not in {"typer", "rich", "httpx"}:
            raise
        raise SystemExit(f"the towline command needs {error.name}: pip install 'towline[cli]'") from None


__all__ = ["main"]
