"""One review, from a given traceparent to its consumer: one trace, without gaps, without anybody's words.

All of it holds for an OTLP receiver that stands in for a collector, and for what a real collector with
otel-collector.yaml lets out.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Generator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from tests.integration.conftest import unique_prefix
from tests.integration.telemetry.backends import Backend, backend
from tests.integration.telemetry.edges import GIVEN, REVIEW, Edge, edges_of
from tests.integration.telemetry.go_build import NoProgramError
from tests.integration.telemetry.receiver import Received
from tests.integration.telemetry.review_app import SECRETS
from tests.waiting import eventually

from towline.contracts.client import TowlineClient
from towline.dev.stack import Stack, StackPlan
from towline.telemetry.metrics import METRICS, prometheus_name

APP = "tests.integration.telemetry.review_app:setup_worker"
ROOT = Path(__file__).parents[3]
TRACE_ID, GIVEN_SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACE_URL = "https://traces.example/{trace_id}"
pytestmark = pytest.mark.timeout(900)  # the first run on a machine builds the collector


@dataclass
class Review:
    """A review that is over, on a stack that is still up."""

    backend: Backend
    stack: Stack
    said: dict[str, Any]
    topics: dict[str, str]
    run_id: str
    """Of this review alone: both share one Redis, where a run of that id would be over already."""

    def spans(self, trace_id: str = TRACE_ID) -> list[Received]:
        return [span for span in self.backend.spans() if span.trace_id == trace_id]


def otel(endpoint: str) -> dict[str, str]:
    """What an operator sets; delays are short so that the tests need not wait."""
    return {
        "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
        "OTEL_BSP_SCHEDULE_DELAY": "100",
        "OTEL_METRIC_EXPORT_INTERVAL": "500",
    }


def call(stack: Stack, endpoint: str, run_id: str) -> dict[str, Any]:
    """Have the caller's process go through a whole review."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("TOWLINE_", "OTEL_"))}
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.integration.telemetry.caller",
            run_id,
            f"00-{TRACE_ID}-{GIVEN_SPAN}-01",
        ],
        env={**kept, **stack.environment(), **otel(endpoint), "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def in_hand(stack: Stack) -> float:
    """Work items that the worker has, by its own metrics."""
    port = stack["worker"].own_ports()[0]
    lines = httpx.get(f"http://127.0.0.1:{port}/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("towline_worker_in_hand"))


@pytest.fixture(scope="module", params=["stand-in", "collector"])
def review(
    request: pytest.FixtureRequest,
    kafka: str,
    valkey: str,
    scheduler: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Generator[Review]:
    data, prefix = tmp_path_factory.mktemp("review"), unique_prefix()
    addresses = {
        "TOWLINE_KAFKA_BOOTSTRAP": kafka,
        "TOWLINE_REDIS_URL": valkey,
        "TOWLINE_SCHEDULER_ADDRESS": scheduler,
    }
    settings = {
        "TOWLINE_KAFKA_TOPIC_PREFIX": prefix,
        "TOWLINE_SCHEDULER_TASKHUB": prefix.strip("."),
        "TOWLINE_RELAY_GROUP": f"{prefix}relay",
        "TOWLINE_RELAY_TRACE_URL": TRACE_URL,
    }
    try:
        with backend(request.param, data / "backend") as made:
            settings |= otel(made.url)
            plan = StackPlan(data=data, app=APP, given=addresses, settings=settings, partitions=3)
            with Stack(plan).running() as running:
                run_id = f"review-{uuid4().hex[:6]}"
                said = call(running, made.url, run_id)
                name = running.kafka.topics.name
                topics = {"runs": name("runs"), "events": name("events"), "results": name("results")}
                review = Review(made, running, said, topics, run_id)
                wanted = {edge.of(topics) for edge in REVIEW}
                with suppress(AssertionError):  # the first test says what is missing
                    eventually(lambda: wanted <= edges_of(review.spans(), GIVEN_SPAN), timeout_s=20)
                yield review
    except NoProgramError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))


def test_a_review_is_one_trace_without_orphans(review: Review) -> None:
    edges = edges_of(review.spans(), GIVEN_SPAN)
    missing = {edge.of(review.topics) for edge in REVIEW} - edges

    assert not missing, "\n".join(map(str, [*missing, "found:", *sorted(edges, key=str)]))
    assert [edge for edge in edges if edge.parent.startswith("?")] == []
    assert [edge.child for edge in edges if edge.parent == GIVEN] == [f"caller send {review.topics['runs']}"]


def test_no_span_is_told_twice_although_turns_are_replayed(review: Review) -> None:
    spans = review.spans()
    repeated = [span_id for span_id, count in Counter(span.span_id for span in spans).items() if count > 1]
    assert repeated == []
    names = Counter(span.name for span in spans)
    once = ("orchestration:review", "invoke_agent Author", "execute_tool look_up", "approval HumanApproval")
    assert [names[name] for name in once] == [1, 1, 1, 1]


def test_the_outcome_carries_the_trace(review: Review) -> None:
    _, trace_id, span_id, _ = review.said["outcome_traceparent"].split("-")
    assert trace_id == TRACE_ID
    (sent,) = (span for span in review.spans() if span.span_id == span_id)
    assert sent.name == f"send {review.topics['results']}"


def test_an_approval_is_a_span_of_its_wait_linked_with_the_approvers_trace(review: Review) -> None:
    (approval,) = (span for span in review.spans() if span.name == "approval HumanApproval")
    assert approval.links == (review.said["approver_trace"],)
    assert approval.attributes["towline.outcome"] == "approved"
    assert approval.attributes["towline.approver"] == "ann"
    # A collector lets each trace go when it has decided about it: this one may come after the run's.
    eventually(lambda: any(span.kind == 5 for span in review.spans(review.said["approver_trace"])))
    (decided,) = (span for span in review.spans(review.said["approver_trace"]) if span.kind == 5)
    assert approval.start_ns < decided.end_ns
    assert approval.end_ns > decided.start_ns


def test_every_span_of_our_services_names_the_run(review: Review) -> None:
    ours = [span for span in review.spans() if span.service.startswith("towline-")]
    assert {span.attributes.get("towline.run_id") for span in ours} == {review.run_id}
    (turn,) = (span for span in ours if span.name == "invoke_agent Author")
    assert turn.attributes["towline.run_type"] == "review"
    assert turn.attributes["towline.session_id"] == "session-1"


def test_an_agents_turn_tells_its_tokens(review: Review) -> None:
    (turn,) = (span for span in review.spans() if span.name == "invoke_agent Author")
    assert int(turn.attributes["gen_ai.usage.input_tokens"]) > 0
    assert int(turn.attributes["gen_ai.usage.output_tokens"]) > 0


def test_nobodys_words_are_in_it(review: Review) -> None:
    text = review.backend.text()
    assert "invoke_agent Author" in text
    assert [secret for secret in SECRETS if secret in text] == []


def test_metrics_are_those_of_the_registry(review: Review) -> None:
    expected = {
        "towline.runs.started",
        "towline.runs.ended",
        "towline.run.duration",
        "towline.run.queue_delay",
        "towline.agent.turn.duration",
        "towline.agent.time_to_first_token",
        "towline.agent.tool_calls",
        "towline.approval.wait",
        "towline.approvals.open",
        "towline.bridge.runs_accepted",
        "towline.consumer.lag",
        "towline.consumer.running",
        "towline.relay.clients",
        "towline.stream.flush_delay",
        "towline.worker.work_items",
        "gen_ai.client.token.usage",
    }
    known = {*METRICS, *map(prometheus_name, METRICS)}

    def missing() -> set[str]:
        names = review.backend.metric_names()
        return {name for name in expected if name not in names and prometheus_name(name) not in names}

    eventually(lambda: not missing(), "every metric")
    assert not missing()
    ours = {name for name in review.backend.metric_names() if name.startswith("towline")}
    assert ours - known == set()


def test_each_role_has_its_metrics_over_http_and_no_label_names_a_run(review: Review) -> None:
    for role in ("bridge", "worker", "relay"):
        text = httpx.get(f"http://127.0.0.1:{review.stack[role].own_ports()[0]}/metrics").text
        names = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE towline_")}
        expected = {prometheus_name(n) for n, about in METRICS.items() if about.role == role}
        assert names <= {prometheus_name(name) for name in METRICS}
        assert expected & names
        assert review.run_id not in text


def test_a_run_that_starts_later_is_told_from_those_that_start_now(review: Review) -> None:
    later = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    body = {"run_type": "archive", "input": "abc", "run_id": f"later-{uuid4().hex[:6]}", "start_at": later}
    assert httpx.post(f"{review.stack.relay_url}/runs", json=body).status_code == 202

    def accepted() -> set[str]:
        text = httpx.get(f"http://127.0.0.1:{review.stack['bridge'].own_ports()[0]}/metrics").text
        return set(re.findall(r'runs_accepted_total\{.*starts="(\w+)"', text))

    eventually(lambda: accepted() == {"now", "later"}, "the alert leaves out what starts later")


def test_the_lookup_of_a_run_links_to_its_trace(review: Review) -> None:
    run = httpx.get(f"{review.stack.relay_url}/runs/{review.run_id}").json()
    assert run["trace_id"] == TRACE_ID
    assert run["links"]["trace"] == TRACE_URL.format(trace_id=TRACE_ID)


def test_a_command_over_http_goes_on_in_the_callers_trace(review: Review) -> None:
    trace_id, run_id = uuid4().hex, f"http-{uuid4().hex[:6]}"
    headers = {"traceparent": f"00-{trace_id}-{GIVEN_SPAN}-01"}
    body = {"run_type": "archive", "input": "abc", "run_id": run_id}
    answer = httpx.post(f"{review.stack.relay_url}/runs", json=body, headers=headers)
    assert answer.status_code == 202

    wanted = {
        Edge(GIVEN, "towline-relay POST /runs"),
        Edge("towline-relay POST /runs", "towline-relay send {runs}").of(review.topics),
        Edge("towline-bridge create_orchestration:archive", "towline-worker orchestration:archive"),
    }
    eventually(lambda: wanted <= edges_of(review.spans(trace_id), GIVEN_SPAN))


async def test_after_a_crash_of_the_worker_the_trace_goes_on(review: Review) -> None:
    trace_id, run_id = uuid4().hex, f"slow-{uuid4().hex[:6]}"
    stack = review.stack
    async with TowlineClient(stack.kafka) as client:
        headers = {"traceparent": f"00-{trace_id}-{GIVEN_SPAN}-01"}
        body = {"run_type": "slow_review", "input": "tides", "run_id": run_id}
        async with httpx.AsyncClient() as http:
            await http.post(f"{stack.relay_url}/runs", json=body, headers=headers)
        # The agent's turn has told of the activity before it: that span is not lost with the worker.
        told = Edge("towline-worker activity:fetch", "towline-worker activity:fetch")
        eventually(lambda: told in edges_of(review.spans(trace_id), GIVEN_SPAN))
        eventually(lambda: in_hand(stack) > 0)
        stack["worker"].kill()
        stack["worker"].start()
        outcome = await client.run(run_id).outcome(timeout=90)

    assert outcome.traceparent is not None
    assert outcome.traceparent.split("-")[1] == trace_id
    wanted = {
        Edge("towline-worker orchestration:slow_review", "towline-worker entity:dafx-slow:run"),
        Edge("towline-worker entity:dafx-slow:run", "towline-worker invoke_agent Slow"),
        Edge("towline-worker orchestration:slow_review", f"towline-worker send {review.topics['results']}"),
    }
    eventually(lambda: wanted <= edges_of(review.spans(trace_id), GIVEN_SPAN))
    edges = edges_of(review.spans(trace_id), GIVEN_SPAN)
    assert [edge for edge in edges if edge.parent.startswith("?")] == []
