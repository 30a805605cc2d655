"""The examples on a stock worker and client: they know MAF and durabletask, and nothing of Towline."""

from __future__ import annotations

import ast
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from agent_framework_durabletask import DurableAIAgentClient
from durabletask.azuremanaged.client import DurableTaskSchedulerClient
from durabletask.azuremanaged.worker import DurableTaskSchedulerWorker
from durabletask.client import OrchestrationState, OrchestrationStatus
from durabletask.worker import ConcurrencyOptions

from examples.demo import DEMO

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"
QUIET = logging.getLogger("towline.examples.sdk")
QUIET.setLevel(logging.CRITICAL)


@dataclass(frozen=True)
class Plain:
    """A stock client of a scheduler at which a stock worker hosts all examples."""

    client: DurableTaskSchedulerClient

    def start(self, run_type: str, run_input: Any) -> str:
        return self.client.schedule_new_orchestration(run_type, input=run_input)

    def end(self, instance_id: str) -> OrchestrationState:
        state = self.client.wait_for_orchestration_completion(instance_id, timeout=30)
        assert state is not None
        return state

    def run(self, run_type: str, run_input: Any) -> OrchestrationState:
        return self.end(self.start(run_type, run_input))

    def decide(self, instance_id: str, data: Any) -> None:
        self.client.raise_orchestration_event(instance_id, "HumanApproval", data=data)

    def until_attempt(self, instance_id: str, number: int) -> dict[str, Any]:
        deadline = time.monotonic() + 15
        while time.monotonic() < deadline:
            state = self.client.get_orchestration_state(instance_id)
            status = state and state.get_custom_status(dict)
            if status and status["attempt"] >= number:
                return status
            time.sleep(0.02)
        raise AssertionError(f"{instance_id} did not reach attempt {number} within 15 s")


@pytest.fixture(scope="module")
def plain(scheduler: str) -> Iterator[Plain]:
    address: dict[str, Any] = {
        "host_address": scheduler,
        "secure_channel": False,
        "taskhub": f"plain-{uuid4().hex[:8]}",
        "token_credential": None,
        "logger": QUIET,
    }
    with pytest.MonkeyPatch.context() as environ:
        environ.setenv("EXAMPLES_MODEL", "offline")
        from examples.all import setup_worker

        threads = ConcurrencyOptions(maximum_thread_pool_workers=16)
        worker = DurableTaskSchedulerWorker(**address, concurrency_options=threads)
        setup_worker(worker)
        client = DurableTaskSchedulerClient(**address)
        worker.start()
        yield Plain(client)
        worker.stop()
        client.close()


def failure(state: OrchestrationState) -> tuple[str, str]:
    assert state.runtime_status == OrchestrationStatus.FAILED
    assert state.failure_details is not None
    return state.failure_details.error_type.rpartition(".")[2], state.failure_details.message


@pytest.mark.parametrize("pattern", [demo.pattern for demo in DEMO])
def test_an_example_imports_only_maf_durabletask_and_its_model(pattern: str) -> None:
    module = EXAMPLES / pattern / "app.py"
    imported = {
        name.split(".")[0] if name != "examples.models" else name
        for node in ast.walk(ast.parse(module.read_text()))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }

    assert imported <= {
        *("agent_framework", "agent_framework_durabletask", "durabletask", "pydantic", "examples.models"),
        *("__future__", "collections", "datetime", "typing"),
    }


@pytest.mark.parametrize(
    ("agent", "message", "answer"),
    [
        ("Joker", "Tell me a joke.", "A consumer walks into a bar"),
        ("WeatherAgent", "What is the weather in Oslo today?", "Oslo has a light breeze and 21 °C."),
        ("MathAgent", "The bill is 80: what is a tip of 20 percent?", "16.00 makes it 96.00"),
        ("TravelPlanner", "Plan three days in Porto.", "the flea market of Porto"),
    ],
)
def test_agents_answer(plain: Plain, agent: str, message: str, answer: str) -> None:
    response = DurableAIAgentClient(plain.client).get_agent(agent).run(message)

    assert answer in response.text


def test_an_agent_keeps_its_conversation_per_session(plain: Plain) -> None:
    joker = DurableAIAgentClient(plain.client).get_agent("Joker")
    session = joker.create_session()
    joker.run("Tell me a joke.", session=session)

    assert "joke number 2" in joker.run("Another one.", session=session).text


def test_chaining_returns_the_second_answer(plain: Plain) -> None:
    state = plain.run("write_slogan", "a lamp")

    assert state.get_output(str) == "Keeps going."
    assert state.get_custom_status(dict)["draft"].startswith("a lamp")


def test_concurrency_returns_both_answers(plain: Plain) -> None:
    output = plain.run("ask_experts", "What is heat?").get_output(dict)

    assert set(output) == {"physicist", "chemist"}
    assert "particles" in output["physicist"]
    assert "bonds" in output["chemist"]


def test_conditionals_mark_spam(plain: Plain) -> None:
    email = {"email_id": "1", "email_content": "You have WON a prize"}

    assert plain.run("handle_email", email).get_output(str).startswith("Email marked as spam: ")


def test_conditionals_answer_other_mail(plain: Plain) -> None:
    email = {"email_id": "2", "email_content": "Could we meet on Tuesday?"}

    assert plain.run("handle_email", email).get_output(str).startswith("Email sent: Thank you")


@pytest.mark.parametrize("payload", [None, "text", {"email_id": "3"}, {"email_id": 4, "email_content": "x"}])
def test_conditionals_fail_on_bad_input(plain: Plain, payload: Any) -> None:
    error_type, message = failure(plain.run("handle_email", payload))

    assert error_type == "ValueError"
    assert message.startswith("Invalid email payload: ")


def test_an_approved_article_is_published(plain: Plain) -> None:
    instance = plain.start("write_article", {"topic": "tides"})
    plain.until_attempt(instance, 1)
    plain.decide(instance, {"approved": True, "feedback": ""})

    assert set(plain.end(instance).get_output(dict)) == {"content", "title"}


def test_a_rejected_article_is_written_anew_with_the_feedback(plain: Plain) -> None:
    instance = plain.start("write_article", {"topic": "tides"})
    plain.until_attempt(instance, 1)
    plain.decide(instance, {"approved": False, "feedback": "say less"})
    plain.until_attempt(instance, 2)
    plain.decide(instance, {"approved": True})

    assert plain.end(instance).get_output(dict) == {
        "title": "On tides, take 2",
        "content": "About tides, written anew after a reviewer said: say less",
    }


def test_an_early_approval_waits_for_its_question(plain: Plain) -> None:
    instance = plain.start("write_article", {"topic": "tides"})
    plain.decide(instance, {"approved": True})

    assert plain.end(instance).runtime_status == OrchestrationStatus.COMPLETED


def test_an_article_that_nobody_decides_times_out(plain: Plain) -> None:
    state = plain.run("write_article", {"topic": "tides", "approval_timeout_seconds": 1})

    assert failure(state) == ("TimeoutError", "Human approval timed out after 1 second(s).")


def test_an_article_can_be_rejected_too_often(plain: Plain) -> None:
    instance = plain.start("write_article", {"topic": "tides", "max_review_attempts": 2})
    for attempt in (1, 2):
        plain.until_attempt(instance, attempt)
        plain.decide(instance, {"approved": False, "feedback": "no"})

    expected = ("RuntimeError", "Content could not be approved after 2 iteration(s).")
    assert failure(plain.end(instance)) == expected


@pytest.mark.parametrize("data", ["perhaps", {"feedback": "no verdict"}, None])
def test_a_malformed_decision_fails_the_article(plain: Plain, data: Any) -> None:
    instance = plain.start("write_article", {"topic": "tides"})
    plain.until_attempt(instance, 1)
    plain.decide(instance, data)

    assert failure(plain.end(instance))[0] == "ValidationError"
