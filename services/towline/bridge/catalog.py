"""What the registered apps can run: their union, with compiled input schemas. Pure."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

from jsonschema import Draft202012Validator, ValidationError, exceptions, validators
from referencing import Registry
from referencing.exceptions import Unresolvable

from towline.contracts.events import AppRegistered, RunTypeInfo

logger = logging.getLogger(__name__)

AGENT_PREFIX: Final = "agent."
_PROBLEMS_MAX_COUNT: Final = 3
_MESSAGE_MAX_LENGTH: Final = 300
_HINT_COUNT: Final = 5


@dataclass(frozen=True, slots=True)
class Offer:
    """One run type of one app."""

    app: str
    info: RunTypeInfo
    validator: Draft202012Validator | None
    """None: any JSON is a valid input."""


@dataclass(frozen=True, slots=True)
class Offers:
    """One run type, of all apps that have it. An input is valid that one of them takes."""

    offers: tuple[Offer, ...]

    def input_problems(self, run_input: Any) -> Sequence[str]:
        """What is wrong with an input, each naming the place and the fix; empty if nothing is."""
        problems: list[str] = []
        for offer in self.offers:
            if offer.validator is None:
                return ()
            found = _problems(offer.validator, run_input)
            if not found:
                return ()
            problems = problems or found
        return problems


class Catalog:
    """The apps by name. Apply events in the order of their topic."""

    def __init__(self) -> None:
        self._apps: dict[str, AppRegistered] = {}
        self._by_run_type: dict[str, Offers] = {}

    @property
    def empty(self) -> bool:
        """Whether no app is registered."""
        return not self._apps

    def register(self, app: AppRegistered) -> None:
        """Take on an app, in place of what it registered before."""
        if self._apps.get(app.app) == app:
            return
        self._apps[app.app] = app
        self._rebuild()
        logger.info(
            "app_registered",
            extra={"app": app.app, "version": app.version, "run_types": len(app.run_types)},
        )

    def remove(self, app: str) -> None:
        """Forget an app (its record in the catalog was deleted)."""
        if self._apps.pop(app, None) is not None:
            self._rebuild()
            logger.info("app_removed", extra={"app": app})

    def find(self, run_type: str) -> Offers | None:
        """Who offers `run_type`, if anyone does."""
        return self._by_run_type.get(run_type)

    def closest(self, run_type: str) -> list[str]:
        """Some registered run types, the most similar ones first."""
        names = sorted(self._by_run_type)
        near = difflib.get_close_matches(run_type, names, n=_HINT_COUNT, cutoff=0.5)
        return near or names[:_HINT_COUNT]

    def _rebuild(self) -> None:
        offers: dict[str, tuple[Offer, ...]] = {}
        for app in self._apps.values():
            for info in _run_types(app):
                offer = Offer(app.app, info, _validator(app.app, info))
                offers[info.name] = (*offers.get(info.name, ()), offer)
        self._by_run_type = {name: Offers(found) for name, found in offers.items()}


def _run_types(app: AppRegistered) -> Iterator[RunTypeInfo]:
    listed = {info.name for info in app.run_types}
    yield from app.run_types
    for agent in app.agents:
        if (name := f"{AGENT_PREFIX}{agent}") not in listed:
            yield RunTypeInfo(name=name)


def _validator(app: str, info: RunTypeInfo) -> Draft202012Validator | None:
    schema: Mapping[str, Any] | None = info.input_schema
    if schema is None:
        return None
    try:
        Draft202012Validator.check_schema(schema)
    except exceptions.SchemaError as error:
        logger.warning(
            "input_schema_ignored", extra={"app": app, "run_type": info.name, "error": error.message}
        )
        return None
    except RecursionError:
        logger.warning(
            "input_schema_ignored", extra={"app": app, "run_type": info.name, "error": "nested too deep"}
        )
        return None
    # An empty registry: a schema from a topic must never make us fetch anything.
    registry: Registry[Any] = Registry()
    return cast("Draft202012Validator", _Validator(schema, registry=registry))


def _unique_items(validator: Any, unique: bool, items: Any, _schema: object) -> Iterator[ValidationError]:
    """In place of jsonschema's, which compares what can't be sorted each with each: hours, for a megabyte."""
    if not unique or not validator.is_type(items, "array"):
        return
    seen: set[Hashable] = set()
    for item in items:
        if (value := _comparable(item)) in seen:
            yield ValidationError("has two items that are equal")
            return
        seen.add(value)


def _comparable(value: Any) -> Hashable:
    """Equal for what JSON Schema calls equal: 1 is 1.0, and true is no 1."""
    if isinstance(value, dict):
        return frozenset((name, _comparable(item)) for name, item in cast("dict[str, Any]", value).items())
    if isinstance(value, list):
        return tuple(_comparable(item) for item in cast("list[Any]", value))
    return (isinstance(value, bool), value)


_Validator: Final[Any] = cast("Any", validators).extend(Draft202012Validator, {"uniqueItems": _unique_items})


def _problems(validator: Draft202012Validator, run_input: Any) -> list[str]:
    try:
        errors: list[ValidationError] = sorted(
            validator.iter_errors(run_input),  # pyright: ignore[reportUnknownMemberType]
            key=lambda error: [str(part) for part in error.absolute_path],
        )
    except (Unresolvable, ArithmeticError) as error:
        # The latter: numbers of JSON have no bounds, those of its arithmetic have.
        logger.warning("input_schema_unusable", extra={"error": str(error)[:_MESSAGE_MAX_LENGTH]})
        return []
    except RecursionError:
        return ["input: is nested too deep for its schema: flatten it"]
    problems = [_problem(error) for error in errors[:_PROBLEMS_MAX_COUNT]]
    if (more := len(errors) - len(problems)) > 0:
        problems.append(f"and {more} more")
    return problems


def _problem(error: ValidationError) -> str:
    # Of "none of these alternatives fits" the closest one says what to mend.
    chosen: ValidationError = error
    if error.context:
        chosen = cast("Any", exceptions).best_match(error.context)
    place = ".".join(["input", *(str(part) for part in chosen.absolute_path)])
    return f"{place}: {chosen.message[:_MESSAGE_MAX_LENGTH]}"
