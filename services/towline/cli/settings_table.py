"""Every TOWLINE_* setting: for people (`towline settings`) and for docs/settings.md."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Annotated, Any, Final

import typer
from pydantic import SecretStr
from pydantic_core import PydanticUndefined
from pydantic_settings import BaseSettings

from towline.cli.output import Printer, json_line, printable

MODULES: Final = {
    "all roles": ("towline.contracts.settings", "towline.telemetry.setup"),
    "bridge": ("towline.bridge.settings",),
    "worker": ("towline.worker.settings", "towline.worker.streams.settings"),
    "relay": ("towline.relay.settings",),
    "scheduler": ("towline.scheduler.settings",),
}
"""Where the settings' classes are, by who reads them."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One variable."""

    role: str
    name: str
    default: str
    description: str
    is_secret: bool = False


_COMMAND_LINE: Final = "command line"
# Read by the command line and the local stack, which have no settings class of their own.
COMMAND_LINE: Final = (
    Setting(
        _COMMAND_LINE,
        "TOWLINE_RELAY_URL",
        "http://127.0.0.1:8090",
        "Where `tail`, `runs` and `publish --follow` find the relay (`none`: there is none); `dev` then "
        "starts none.",
    ),
    Setting(_COMMAND_LINE, "TOWLINE_RELAY_TOKEN", "", "API key or OIDC token for the relay.", is_secret=True),
    Setting(
        _COMMAND_LINE,
        "TOWLINE_CACHE_DIR",
        "~/.cache/towline",
        "Where `dev` keeps Kafka's jars; XDG_CACHE_HOME is honoured too.",
    ),
)


def collect() -> list[Setting]:
    """All settings, by role. Those of a role that is not installed are left out."""
    found: list[Setting] = []
    for role, modules in MODULES.items():
        for module_name in modules:
            try:
                module = importlib.import_module(module_name)
            except ModuleNotFoundError:
                continue
            for settings in _classes(module):
                found += _settings(role, settings)
            if module_name == "towline.scheduler.settings":
                found += _scheduler_settings(role, module)
    return [*found, *COMMAND_LINE]


def _classes(module: ModuleType) -> Iterator[type[BaseSettings]]:
    members: dict[str, object] = vars(module)
    for value in members.values():
        if (
            isinstance(value, type)
            and issubclass(value, BaseSettings)
            and value.__module__ == module.__name__
            and value.model_config.get("env_prefix")
        ):
            yield value


def _settings(role: str, settings: type[BaseSettings]) -> Iterator[Setting]:
    prefix = settings.model_config.get("env_prefix", "")
    for name, field in settings.model_fields.items():
        yield Setting(
            role,
            f"{prefix}{name}".upper(),
            _default(field.default),
            field.description or "",
            is_secret="SecretStr" in str(field.annotation),
        )


def _scheduler_settings(role: str, module: ModuleType) -> Iterator[Setting]:
    # Plain dataclass fields, so that the server starts without pydantic.
    for variable in module.variables():
        yield Setting(
            role, variable.name, _default(variable.default), variable.description, variable.is_secret
        )


def _default(value: Any) -> str:
    if value is None or value is PydanticUndefined:
        return ""
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    return str(value).lower() if isinstance(value, bool) else str(value)


def markdown(settings: list[Setting]) -> str:
    """The text of docs/settings.md."""
    lines = [
        "# Settings",
        "",
        "Every role reads its settings once, at start, from the environment. Durations are in seconds unless",
        "the name says otherwise. This page is written by `towline settings --markdown`; a test compares.",
    ]
    role = None
    for setting in settings:
        if setting.role != role:
            role = setting.role
            lines += ["", f"## {role.capitalize()}", "", "| variable | default | meaning |", "|---|---|---|"]
        default = f"`{setting.default}`" if setting.default else ""
        lines.append(f"| `{setting.name}` | {_cell(default)} | {_cell(setting.description)} |")
    return "\n".join([*lines, ""])


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def settings(
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print docs/settings.md.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON lines.")] = False,
) -> None:
    """All settings: variable, what is set, default, meaning."""
    found = collect()
    if as_markdown:
        Printer.raw(markdown(found))
    elif as_json:
        for setting in found:
            Printer.line(
                json_line(
                    {
                        "name": setting.name,
                        "role": setting.role,
                        "value": _value(setting),
                        "default": setting.default,
                        "description": setting.description,
                    }
                )
            )
    else:
        role = None
        for setting in found:
            if setting.role != role:
                role = setting.role
                Printer.line(f"\n# {role}")
            Printer.line(text(setting))


def _value(setting: Setting) -> str | None:
    value = os.environ.get(setting.name)
    return "********" if value and setting.is_secret else value


def text(setting: Setting) -> str:
    """Two lines for people: the variable as it is now, and what it means."""
    value = _value(setting)
    now = f"{setting.name}={setting.default if value is None else printable(value)}"
    return f"{now}{'' if value is None else '   (set)'}\n    {setting.description}"
