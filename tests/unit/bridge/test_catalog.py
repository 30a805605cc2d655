"""The catalog: union of the apps, and what it says about inputs."""

from __future__ import annotations

import time

import pytest

from towline.bridge.catalog import Catalog
from towline.contracts.events import AppRegistered, RunTypeInfo


def app(name, *run_types, agents=()):
    return AppRegistered(app=name, version="1", run_types=list(run_types), agents=list(agents))


def info(name, schema=None):
    return RunTypeInfo(name=name, input_schema=schema)


def test_the_latest_registration_of_an_app_counts_and_a_removed_one_is_gone():
    catalog = Catalog()
    assert catalog.empty
    catalog.register(app("a", info("x")))
    catalog.register(app("a", info("y"), agents=["Writer"]))
    assert catalog.find("x") is None
    assert catalog.find("y")
    assert catalog.find("agent.Writer")
    catalog.remove("a")
    catalog.remove("never there")
    assert catalog.empty
    assert catalog.find("y") is None


def test_a_run_type_of_two_apps_takes_what_either_takes():
    catalog = Catalog()
    catalog.register(app("a", info("x", {"type": "string"})))
    catalog.register(app("b", info("x", {"type": "integer"})))
    offers = catalog.find("x")
    assert offers.input_problems("s") == ()
    assert offers.input_problems(1) == ()
    assert offers.input_problems(None) == ["input: None is not of type 'string'"]
    catalog.register(app("c", info("x")))
    assert catalog.find("x").input_problems(None) == ()


SCHEMA = {
    "type": "object",
    "properties": {
        "n": {"type": "integer"},
        "items": {"type": "array", "items": {"$ref": "#/$defs/item"}},
        "either": {"anyOf": [{"type": "string"}, {"type": "null"}]},
    },
    "required": ["n"],
    "additionalProperties": False,
    "$defs": {"item": {"type": "object", "properties": {"name": {"type": "string"}}}},
}


@pytest.mark.parametrize(
    ("value", "problems"),
    [
        ({"n": 1, "items": [{"name": "a"}], "either": None}, []),
        ({}, ["input: 'n' is a required property"]),
        ({"n": "1"}, ["input.n: '1' is not of type 'integer'"]),
        ({"n": 1, "items": [{}, {"name": 2}]}, ["input.items.1.name: 2 is not of type 'string'"]),
        ({"n": 1, "either": 5}, ["input.either: 5 is not of type 'string'"]),
        (
            {"n": 1, "x": 1},
            ["input: Additional properties are not allowed ('x' was unexpected)"],
        ),
    ],
)
def test_a_problem_names_the_place_and_what_is_expected(value, problems):
    catalog = Catalog()
    catalog.register(app("a", info("x", SCHEMA)))
    assert list(catalog.find("x").input_problems(value)) == problems


def test_many_problems_are_cut_short():
    catalog = Catalog()
    catalog.register(app("a", info("x", {"items": {"type": "string"}})))
    problems = catalog.find("x").input_problems(list(range(10)))
    assert len(problems) == 4
    assert problems[-1] == "and 7 more"


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "nonsense"},
        {"$ref": "https://example.com/schema.json"},
        {"$ref": "#/$defs/missing"},
    ],
    ids=["invalid", "remote", "dangling"],
)
def test_an_unusable_schema_takes_any_input_and_fetches_nothing(schema):
    catalog = Catalog()
    catalog.register(app("a", info("x", schema)))
    assert list(catalog.find("x").input_problems({"any": 1})) == []


def test_a_schema_nested_too_deep_to_be_checked_takes_any_input_and_leaves_the_other_apps_alone():
    schema = {"type": "string"}
    for _ in range(150):
        schema = {"items": schema}
    catalog = Catalog()
    catalog.register(app("a", info("deep", schema)))
    catalog.register(app("b", info("flat", {"type": "string"})))
    assert catalog.find("deep").input_problems("s") == ()
    assert catalog.find("flat").input_problems(1) == ["input: 1 is not of type 'string'"]


def test_a_number_too_large_to_be_checked_is_left_to_the_app():
    catalog = Catalog()
    catalog.register(app("a", info("x", {"multipleOf": 0.5})))
    assert not catalog.find("x").input_problems(10**400)


def test_an_input_nested_too_deep_for_its_schema_is_a_problem_not_a_crash():
    catalog = Catalog()
    catalog.register(app("a", info("x", {"items": {"$ref": "#"}})))
    value: list[object] = []
    for _ in range(2000):
        value = [value]
    assert "nested too deep" in catalog.find("x").input_problems(value)[0]


def test_the_closest_names_come_first():
    catalog = Catalog()
    catalog.register(app("a", *(info(name) for name in ("review", "publish", "agent.Writer"))))
    assert catalog.closest("reviev") == ["review"]
    assert catalog.closest("zzz") == ["agent.Writer", "publish", "review"]


@pytest.mark.parametrize(
    ("items", "are_unique"),
    [
        ([{"n": n} for n in range(20_000)], True),
        ([{"n": n} for n in range(20_000)] + [{"n": 7.0}], False),
        ([1, 1.0], False),
        ([1, True, "1", [1], [True], {"a": 1}, {"a": True}, None], True),
        ([{"a": [1, {"b": 2}], "c": 3}, {"c": 3, "a": [1.0, {"b": 2}]}], False),
        ([[1, 2], [2, 1]], True),
        ("text", True),
    ],
)
def test_items_that_must_be_unique_are_compared_in_no_time_and_as_json_schema_says(
    items: object, are_unique: bool
) -> None:
    """An event of a megabyte had the bridge compare for hours, and the next bridge after it."""
    catalog = Catalog()
    catalog.register(app("a", info("tagged", {"uniqueItems": True})))
    offers = catalog.find("tagged")
    assert offers is not None
    began = time.process_time()
    problems = offers.input_problems(items)
    assert time.process_time() - began < 5
    assert list(problems) == ([] if are_unique else ["input: has two items that are equal"])
