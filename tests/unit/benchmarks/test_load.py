"""The check of every answer, and how the systems ask and read."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, cast

import pytest
from benchmarks.end_to_end.job import expected, latency_s, make_agent, message
from benchmarks.end_to_end.load import Load
from benchmarks.end_to_end.systems import SYSTEMS
from benchmarks.end_to_end.systems.base import Said, System
from benchmarks.end_to_end.systems.peer import Peer

PEERS = [name for name, system in SYSTEMS.items() if issubclass(system, Peer)]


@dataclass(frozen=True)
class Record:
    value: bytes
    topic: str = "bench.says"


@pytest.fixture(params=PEERS)
def peer(request: pytest.FixtureRequest) -> System:
    return SYSTEMS[request.param]("127.0.0.1:1")


def says(**facts: Any) -> Any:
    return Record(json.dumps(facts).encode())


def test_what_a_peer_says_is_read(peer: System) -> None:
    assert peer.read(says(run_id="r", output="echo")) == Said("r", output="echo")
    assert peer.read(says(run_id="r", asks="a")) == Said("r", asks="a")


def test_a_decision_names_the_approval_that_was_asked_for(peer: System) -> None:
    decision = peer.decide("r", "a")

    assert json.loads(decision.value) == {"run_id": "r", "approval": "a", "approved": True}
    assert decision.topic == f"bench.{peer.name}.decisions"
    assert decision.key == b"r"


def test_each_kind_of_request_has_a_topic_of_its_own(peer: System) -> None:
    topics = {peer.request("r", kind, "m").topic for kind in ("answer", "approved_answer")}

    assert topics == {f"bench.{peer.name}.answer", f"bench.{peer.name}.approved_answer"}


def test_every_system_says_what_is_durable_and_why_it_cannot_run() -> None:
    for system in SYSTEMS.values():
        assert system.durable
        assert system.missing() is None or "install" in cast("str", system.missing())


def generator() -> Any:
    class Reader(Load):
        def note(self, **facts: Any) -> None:
            self._note(says(**facts))

    system = SYSTEMS["straightforward"]("127.0.0.1:1")
    return Reader(system, 0, None)


def test_lost_duplicate_and_wrong_answers_are_counted() -> None:
    load = generator()
    messages = {name: message(0, number) for number, name in enumerate(("good", "twice", "wrong", "lost"))}
    load.note(run_id="good", output=expected(messages["good"]))
    load.note(run_id="twice", output=expected(messages["twice"]))
    load.note(run_id="twice", output=expected(messages["twice"]))
    load.note(run_id="wrong", output="echo: something else")
    load.note(run_id="of another workload", output="x")

    assert load.check(messages) == (1, 1, 1)


def test_what_was_checked_can_be_forgotten() -> None:
    load = generator()
    load.note(run_id="r", output="x")

    load.forget(["r"])

    assert load.check({"r": "m"}) == (1, 0, 0)
    assert load.answered_at("r") is None


async def test_the_agent_answers_what_is_expected_of_a_message_that_says_how_long_it_takes() -> None:
    text = message(3, 7)

    assert latency_s(text) == 0.003
    assert (await make_agent().run(text)).text == expected(text)
