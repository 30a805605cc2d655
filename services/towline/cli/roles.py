"""The roles' commands, mounted so that each role loads its own dependencies only."""

from __future__ import annotations

import gc
import importlib
import sys
from collections.abc import Sequence
from typing import Any, Final

import typer

ROLES: Final = {
    "bridge": "Kafka to scheduler: start runs, hand decisions in.",
    "worker": "Host an app's agents and orchestrations.",
    "relay": "Streams and the HTTP API.",
    "scheduler": "The durable scheduler for one machine.",
    "dev": "The whole stack on this machine.",
    "demo": "All seven examples through real Kafka, then stop.",
    "dead-letters": "What could not be trusted: list, show, replay, discard.",
}
"""Name and help line."""

_SETTINGS: Final[dict[str, Any]] = {
    "allow_extra_args": True,
    "ignore_unknown_options": True,
    "help_option_names": [],
}
_WRONG: Final = 2
"""Exit status for a wrong command line or setting: trying again does not mend it."""
_MODULES: Final = {"demo": "towline.dev.demo", "dead-letters": "towline.delivery.command"}


def run_role(role: str, arguments: list[str]) -> None:
    """Run `role`'s own command line with `arguments`.

    Raises:
        SystemExit: At its end, or because its dependencies are not installed; a line says which.
    """
    module = _MODULES.get(role, f"towline.{role}.command")
    # What is loaded stays: looking through it for garbage, now and later, costs a tenth of a start.
    gc.disable()
    try:
        command = importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing == "towline":
            raise
        extra = {"demo": "dev", "dead-letters": "bridge"}.get(role, role)
        raise SystemExit(f"towline {role} needs {missing}: pip install 'towline[{extra}]'") from None
    except ValueError as error:
        # OpenTelemetry reads one of its variables as it is imported.
        if not str(error).startswith("OTEL_"):
            raise
        sys.stderr.write(f"towline {role}: {error}\n")
        raise SystemExit(_WRONG) from None
    finally:
        gc.freeze()
        gc.enable()
    try:
        command.app(args=arguments, prog_name=f"towline {role}")
    except ValueError as error:
        # Pydantic's ValidationError; not imported, since the scheduler starts without pydantic.
        details: Any = error
        if not hasattr(details, "error_count"):
            raise
        # Never the values: one of them may be a secret.
        first = details.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in (details.title, *first["loc"]))
        sys.stderr.write(f"towline {role}: {field}: {first['msg']}: see `towline settings`\n")
        raise SystemExit(_WRONG) from None


def run_named_role(arguments: Sequence[str]) -> bool:
    """Run the role that `arguments` begin with, without loading the other commands; False if it is none."""
    if not arguments or arguments[0] not in ROLES:
        return False
    run_role(arguments[0], list(arguments[1:]))
    return True


def mount(app: typer.Typer) -> None:
    """Add a command for each role to `app`."""
    for role, line in ROLES.items():
        app.command(role, help=line, context_settings=_SETTINGS, rich_help_panel="Roles")(_command(role))


def _command(role: str):
    def run(context: typer.Context) -> None:
        run_role(role, context.args)

    return run
