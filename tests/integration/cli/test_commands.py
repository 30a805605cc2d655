"""The command line against a real stack."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest
from tests.integration.conftest import StackFactory
from typer.testing import CliRunner, Result

from towline.cli.app import app
from towline.dev.stack import Stack

ARTICLE = '{"topic": "tides", "max_review_attempts": 3, "approval_timeout_seconds": 600}'
Towline = Callable[..., Result]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def running(module_stack: StackFactory) -> Stack:
    return module_stack("examples.all:setup_worker")


@pytest.fixture
def towline(running: Stack) -> Towline:
    """Run `towline` with the stack's addresses."""
    environment = running.environment()

    def run(*arguments: str, relay: bool = True) -> Result:
        url = environment["TOWLINE_RELAY_URL"] if relay else "none"
        return CliRunner().invoke(app, list(arguments), env={**environment, "TOWLINE_RELAY_URL": url})

    return run


def lines(result: Result) -> list[dict[str, Any]]:
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_a_run_is_followed_decided_and_found_again(towline: Towline) -> None:
    joke = towline("publish", "agent.Joker", "-i", '{"message": "Tell me a joke about Kafka."}', "--follow")
    assert joke.exit_code == 0, joke.output
    assert re.search(r"^Joker> A consumer walks into a bar", joke.stdout, re.MULTILINE)
    assert re.search(r"^completed  A consumer walks into a bar", joke.stdout, re.MULTILINE)

    streamed = lines(towline("publish", "agent.TravelPlanner", "-i", '{"message": "Porto"}', "-f", "--json"))
    assert streamed[0]["run_type"] == "agent.TravelPlanner"
    kinds = [line["event"] for line in streamed[1:]]
    assert "token" in kinds
    assert kinds[-1] == "end"

    run_id = f"article-{uuid4().hex[:8]}"
    published = towline("publish", "write_article", "-i", ARTICLE, "--run-id", run_id, "--tag", "kind=test")
    assert published.stdout == f"{run_id}\n"

    early = towline("approve", run_id, "HumanAproval", "--wait", "0.5")
    assert (early.exit_code, early.stdout) == (
        3,
        f"{run_id}  HumanAproval  published: see `towline events`\n",
    )
    assert early.stderr.startswith("towline: no answer within 0.5 s: as long as run")
    assert f"towline tail {run_id}" in early.stderr
    assert towline("approve", run_id, "HumanAproval", "--wait", "0").exit_code == 0

    rejected = towline("reject", run_id, "HumanApproval", "--feedback", "say less", "--wait", "60")
    assert rejected.stdout == f"{run_id}  HumanApproval  rejected\n"
    again = towline("approve", run_id, "HumanApproval", "--wait", "60")
    assert (again.exit_code, again.stdout) == (1, f"{run_id}  HumanApproval  refused: already_resolved\n")
    assert lines(towline("suspend", run_id, "--wait", "60", "--json"))[0]["answer"]["type"].startswith(
        "towline.run"
    )
    assert "resume  done" in towline("resume", run_id, "--wait", "60").stdout
    (approved,) = lines(towline("approve", run_id, "HumanApproval~2", "--wait", "60", "--json"))
    assert approved["answer"]["id"].endswith(approved["event_id"])

    tail = towline("tail", run_id)
    assert tail.exit_code == 0
    assert "say less" in tail.stdout.splitlines()[-1]
    from_kafka = lines(towline("events", "--all", "--json"))
    mine = [event["type"] for event in from_kafka if event["subject"] == run_id]
    assert mine[0] == "towline.run.started.v1"
    assert mine.count("towline.approval.requested.v1") == 2
    told = {event["data"].get("reason") for event in from_kafka if "/HumanAproval/refused/" in event["id"]}
    assert told == {"unknown_approval"}
    outcomes = {event["id"]: event["type"] for event in lines(towline("results", "--json"))}
    assert outcomes[f"{run_id}/outcome"] == "towline.run.completed.v1"
    late = towline("cancel", run_id, "--wait", "60")
    assert (late.exit_code, late.stdout) == (1, f"{run_id}  cancel  refused: already_finished\n")
    listed = {run["run_id"]: run["status"] for run in lines(towline("runs", "--json"))}
    assert listed[run_id] == "completed"


@pytest.mark.parametrize("relay", [True, False])
def test_a_rejected_run_is_followed_to_its_reason_and_a_status_of_1(towline: Towline, relay: bool) -> None:
    rejected = towline("publish", "no_such_type", "--follow", relay=relay)
    assert rejected.exit_code == 1
    assert "no_such_type" in rejected.stdout


def test_without_a_relay_a_run_is_followed_on_kafka(towline: Towline) -> None:
    done = towline("publish", "agent.Joker", "-i", '{"message": "Kafka?"}', "-f", relay=False)
    assert done.exit_code == 0, done.output
    assert "run.completed  A consumer walks into a bar" in done.stdout
