"""Whether a changed JSON Schema still serves everybody who knows the older one.

Within a version of the contract, new optional fields are the only change allowed: readers of the older
schema ignore them, and what older writers send is still valid. Whatever else changes what is valid
breaks somebody, in one direction or the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final, cast

_NOTES: Final = frozenset(
    {"title", "description", "examples", "default", "$id", "$schema", "$defs", "$comment"}
)
"""Keywords that do not change what is valid."""
_STRUCTURE: Final = frozenset({"properties", "required"})


def breaking_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What in `new` breaks readers or writers that know `old`, one line each; empty if nothing does."""
    return list(_compare(_resolved(old, old), _resolved(new, new), "data"))


def _compare(old: Any, new: Any, where: str) -> Iterator[str]:
    if not (isinstance(old, dict) and isinstance(new, dict)):
        if old != new:
            yield f"{where}: was {old!r}, is {new!r}"
        return
    before, after = cast("dict[str, Any]", old), cast("dict[str, Any]", new)
    yield from _compare_fields(before, after, where)
    for keyword in sorted((before.keys() | after.keys()) - _STRUCTURE):
        if keyword not in after:
            yield f"{where}: lost {keyword} {before[keyword]!r}"
        elif keyword not in before:
            yield f"{where}: gained {keyword} {after[keyword]!r}"
        elif keyword == "enum":
            yield from _compare_enums(before["enum"], after["enum"], where)
        elif keyword == "anyOf" and len(before["anyOf"]) == len(after["anyOf"]):
            for index, (one, other) in enumerate(zip(before["anyOf"], after["anyOf"], strict=True)):
                yield from _compare(one, other, f"{where}|{index}")
        else:
            yield from _compare(before[keyword], after[keyword], f"{where}.{keyword}")


def _compare_fields(old: dict[str, Any], new: dict[str, Any], where: str) -> Iterator[str]:
    old_fields = cast("dict[str, Any]", old.get("properties", {}))
    new_fields = cast("dict[str, Any]", new.get("properties", {}))
    old_required, new_required = set(old.get("required", ())), set(new.get("required", ()))
    for name, field in old_fields.items():
        if name not in new_fields:
            yield f"{where}.{name}: was removed or renamed: keep it"
            continue
        yield from _compare(field, new_fields[name], f"{where}.{name}")
        if name in old_required - new_required:
            yield f"{where}.{name}: is no longer required, but older readers rely on it"
        if name in new_required - old_required:
            yield f"{where}.{name}: is required now, but older writers leave it out"
    for name in sorted(new_required - old_fields.keys()):
        yield f"{where}.{name}: is new and required: make it optional"


def _compare_enums(old: list[Any], new: list[Any], where: str) -> Iterator[str]:
    for value in old:
        if value not in new:
            yield f"{where}: {value!r} is refused now, but older writers send it"
    for value in new:
        if value not in old:
            yield f"{where}: {value!r} is new, and older readers refuse it"


def _resolved(schema: Any, root: Mapping[str, Any]) -> Any:
    """`schema` with its references put in place and notes taken out."""
    if isinstance(schema, list):
        return [_resolved(item, root) for item in cast("list[Any]", schema)]
    if not isinstance(schema, Mapping):
        return schema
    node = dict(cast("Mapping[str, Any]", schema))
    reference = node.pop("$ref", None)
    if reference is not None:
        node = {**root["$defs"][str(reference).rsplit("/", 1)[-1]], **node}
    result: dict[str, Any] = {}
    for keyword, value in node.items():
        if keyword == "properties":
            # Below are names of fields, some of which look like keywords.
            result[keyword] = {name: _resolved(field, root) for name, field in value.items()}
        elif keyword not in _NOTES:
            result[keyword] = _resolved(value, root)
    return result
