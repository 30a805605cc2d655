"""The relay keeps to its OpenAPI document, whatever is sent: inputs made from the document, valid and not."""

from __future__ import annotations

from typing import Any

import httpx
import hypothesis
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase
from schemathesis import checks
from schemathesis.specs.openapi import checks as openapi_checks

STREAMS = ("/runs/{run_id}/stream", "/runs/{run_id}/agui", "/events")
"""They do not end by themselves: tested by the tests of streams."""
EXAMPLES = 25
CHECKS = (
    checks.not_a_server_error,
    openapi_checks.status_code_conformance,
    openapi_checks.content_type_conformance,
    openapi_checks.response_schema_conformance,
)

NO_REQUESTS = (
    b"",
    b"{",
    b"[]",
    b"\xff\xfe",
    b"[" * 100_000,
    b'{"run_type": "t", "input": ' + b"[" * 5_000 + b"]" * 5_000 + b"}",
    b'{"run_type": "t", "input": "' + b"x" * 1_100_000 + b'"}',
    b'{"run_type": 7}',
    b'{"run_type": "t", "run_id": "a b"}',
    b'{"run_type": "t", "input": "\\ud800"}',
)
REFUSED = (httpx.codes.BAD_REQUEST, httpx.codes.REQUEST_ENTITY_TOO_LARGE, httpx.codes.UNPROCESSABLE_ENTITY)


@pytest.mark.slow
def test_no_request_gets_an_answer_that_the_document_does_not_have(start_relay, own_valkey):
    relay = start_relay(rate_per_s=10_000, rate_burst=10_000)
    schema = schemathesis.openapi.from_url(f"{relay.url}/openapi.json")
    tried: dict[str, int] = {}

    for result in schema.get_all_operations():
        operation = result.ok()
        if operation.path in STREAMS:
            continue
        for mode in schemathesis.GenerationMode:

            @hypothesis.settings(
                max_examples=EXAMPLES,
                deadline=None,
                database=None,
                derandomize=True,
                phases=(Phase.explicit, Phase.generate),
                suppress_health_check=list(HealthCheck),
            )
            @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
            def conforms(case: Any) -> None:
                case.call_and_validate(checks=list(CHECKS), timeout=20)
                tried[case.operation.label] = tried.get(case.operation.label, 0) + 1

            conforms()

    assert len(tried) >= 8, tried

    # Reached by no generator: the body is no JSON, or too much of it.
    for body in NO_REQUESTS:
        answer = httpx.post(f"{relay.url}/runs", content=body, headers={"content-type": "application/json"})
        assert answer.status_code in REFUSED, (body[:40], answer.text)
        assert answer.headers["content-type"].startswith("application/problem+json"), body[:40]
    assert httpx.get(f"{relay.url}/readyz").status_code == httpx.codes.OK
