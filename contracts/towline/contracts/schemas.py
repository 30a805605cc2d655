"""JSON Schemas and the AsyncAPI document, generated into ``contracts/`` from the models.

python -m towline.contracts.schemas             write them
python -m towline.contracts.schemas --check     exit 1, with a diff, if they are stale, or if they
                                                break those who know the released contract
python -m towline.contracts.schemas --release   write them, and make them the released contract
"""

from __future__ import annotations

import argparse
import difflib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, cast

from towline.contracts import asyncapi
from towline.contracts.compatibility import breaking_changes
from towline.contracts.events import EVENT_MODELS, EventData

CONTRACT_VERSION: Final = "1.0.0"
"""Of the AsyncAPI document: its first number is the version in the event types."""
DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"

_ROOT: Final = Path(__file__).resolve().parents[2]
_BASELINE: Final = Path("schemas", "baseline", "v1")


def schema_of(model: type[EventData]) -> dict[str, Any]:
    """The JSON Schema of one event type's data. Fields it does not name are allowed."""
    return {
        "$schema": DIALECT,
        "$id": f"urn:towline:event:{model.event_type}",
        **_open(model.model_json_schema(mode="validation")),
    }


def generated(root: Path) -> dict[Path, str]:
    """What belongs into ``contracts/``: path below `root` → content. Reads the golden examples there."""
    files = {
        Path("schemas", f"{model.event_type}.json"): _json_text(schema_of(model)) for model in EVENT_MODELS
    }
    document = asyncapi.document(CONTRACT_VERSION, _examples(root))
    files[Path("asyncapi.yaml")] = (
        "# Generated from the models by `make schemas`; do not edit.\n" + asyncapi.to_yaml(document)
    )
    return files


def differences(root: Path) -> list[str]:
    """A unified diff between what is in `root` and what should be; empty if nothing is stale."""
    wanted = generated(root)
    lines: list[str] = []
    for path, text in wanted.items():
        file = root / path
        found = file.read_text(encoding="utf-8") if file.exists() else ""
        lines += difflib.unified_diff(
            found.splitlines(), text.splitlines(), f"{path} (checked in)", f"{path} (models)", lineterm=""
        )
    present = {path.relative_to(root) for path in (root / "schemas").glob("*.json")}
    lines += [f"{path}: belongs to no event type: delete it" for path in sorted(present - wanted.keys())]
    return lines


def broken_promises(root: Path) -> list[str]:
    """What the models break of the released contract below `root`, one line each."""
    current = {model.event_type: schema_of(model) for model in EVENT_MODELS}
    lines: list[str] = []
    for file in sorted((root / _BASELINE).glob("*.json")):
        event_type = file.stem
        if event_type not in current:
            lines.append(f"{event_type}: the event type was removed: keep it")
            continue
        released = json.loads(file.read_text(encoding="utf-8"))
        lines += [f"{event_type}: {change}" for change in breaking_changes(released, current[event_type])]
    return lines


def write(root: Path, *, release: bool = False) -> list[Path]:
    """Write what is stale; returns the paths written."""
    files = generated(root)
    if release:
        files |= {
            _BASELINE / path.name: text for path, text in files.items() if path.parent.name == "schemas"
        }
    written: list[Path] = []
    for path, text in files.items():
        file = root / path
        if file.exists() and file.read_text(encoding="utf-8") == text:
            continue
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
        written.append(path)
    return written


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m towline.contracts.schemas", description=__doc__)
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--check", action="store_true", help="only say what is stale or broken")
    mode.add_argument("--release", action="store_true", help="make this the released contract")
    parser.add_argument("--root", type=Path, default=_ROOT, help="the contracts folder of a checkout")
    chosen = parser.parse_args(arguments)
    root: Path = chosen.root
    if not (root / "examples").is_dir():
        parser.error(f"--root: {root} has no examples folder: give the contracts folder of a checkout")
    problems = broken_promises(root)
    if chosen.check:
        stale = differences(root)
        _print(stale)
        if stale:
            _print(["contracts/ is stale: run `make schemas` and commit what it writes"])
    else:
        stale = []
        if not (problems and chosen.release):
            _print([f"wrote {path}" for path in write(root, release=chosen.release)])
    _print([f"breaks the released contract: {problem}" for problem in problems])
    return 1 if stale or problems else 0


def _print(lines: Sequence[str]) -> None:
    for line in lines:
        sys.stdout.write(f"{line}\n")


def _json_text(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def _examples(root: Path) -> Mapping[str, Any]:
    examples: dict[str, Any] = {}
    for model in EVENT_MODELS:
        files = sorted((root / "examples" / model.event_type).glob("*.json"))
        if not files:
            raise SystemExit(f"examples/{model.event_type}: has no example: add one, as in the other folders")
        examples[model.event_type] = json.loads(files[0].read_text(encoding="utf-8"))
    return examples


def _open(schema: Any) -> Any:
    """`schema` saying of every object with named fields that it may have others."""
    if isinstance(schema, list):
        return [_open(item) for item in cast("list[Any]", schema)]
    if not isinstance(schema, dict):
        return schema
    opened = {key: _open(value) for key, value in cast("dict[str, Any]", schema).items()}
    if opened.get("type") == "object" and isinstance(opened.get("properties"), dict):
        opened["additionalProperties"] = True
    return opened


if __name__ == "__main__":
    sys.exit(main())
