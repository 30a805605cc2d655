"""The OpenAPI document as generators of clients read it; integration tests see that the relay keeps to it."""

from __future__ import annotations

import re

from towline.relay.openapi import document

OPERATIONS = [operation for path in document()["paths"].values() for operation in path.values()]


def test_every_operation_has_a_name_of_its_own_to_be_called_by() -> None:
    names = [operation["operationId"] for operation in OPERATIONS]

    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[a-z]+([A-Z][a-z]+)+", name) for name in names)


def test_every_parameter_of_a_path_is_described_and_the_other_way_round() -> None:
    for path, operations in document()["paths"].items():
        for operation in operations.values():
            described = {one["name"] for one in operation["parameters"] if one["in"] == "path"}
            assert described == set(re.findall(r"{(\w+)}", path)), path


def test_of_a_body_only_what_must_be_sent_counts_as_there() -> None:
    for name, must in (("RunRequested", ["run_type"]), ("ApprovalDecided", ["approved"])):
        schema = document()["components"]["schemas"][name]

        assert schema["required"] == must
        assert not [field for field, about in schema["properties"].items() if "default" in about]


def test_every_schema_that_is_referred_to_is_there() -> None:
    described = document()

    referred = set(re.findall(r"'#/components/schemas/(\w+)'", repr(described)))

    assert referred
    assert referred <= described["components"]["schemas"].keys()
