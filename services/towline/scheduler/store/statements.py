"""The statements of ``queries.sql`` by name."""

from importlib import resources
from typing import Final


def _parse(source: str) -> dict[str, str]:
    statements: dict[str, str] = {}
    name: str | None = None
    lines: list[str] = []
    for line in source.splitlines():
        if line.startswith("-- name:"):
            if name is not None:
                statements[name] = "\n".join(lines).strip()
            name, lines = line.removeprefix("-- name:").strip(), []
        elif not line.startswith("--"):
            lines.append(line)
    if name is not None:
        statements[name] = "\n".join(lines).strip()
    return statements


SQL: Final[dict[str, str]] = _parse(
    resources.files("towline.scheduler.store").joinpath("queries.sql").read_text(encoding="utf-8")
)
