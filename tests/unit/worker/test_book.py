"""The book of asks: its rules one by one, and its invariants under random programs."""

from __future__ import annotations

import json
from collections import Counter
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from towline.contracts.durable import ChildAsk, RaisedCommand
from towline.worker.ask_model import (
    TRANSITIONS,
    AskSpec,
    AskState,
    Deliver,
    Effect,
    Forward,
    Refused,
    Resolved,
)
from towline.worker.book import CLOSED_CARRIED_MAX, EARLY_MAX, Book

NOON = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)


def spec(approval_id: str = "a", **fields: Any) -> AskSpec:
    return AskSpec(approval_id=approval_id, name=fields.pop("name", approval_id), **fields)


def decided(
    approval_id: str = "a", approved: bool = True, command_id: str = "d1", **fields: Any
) -> RaisedCommand:
    return RaisedCommand(
        command_id=command_id, kind="decision", name=approval_id, approved=approved, **fields
    )


def reasons(effects: list[Effect]) -> list[str]:
    return [effect.reason for effect in effects if isinstance(effect, Refused)]


def outcomes(effects: list[Effect]) -> list[str]:
    return [effect.outcome for effect in effects if isinstance(effect, Resolved)]


def test_asks_of_one_name_are_numbered_whatever_their_case() -> None:
    book = Book()
    assert [book.name_ask(name) for name in ("Go", "go", "stop", "GO")] == ["Go", "go~2", "stop", "GO~3"]


@pytest.mark.parametrize(
    ("asked", "command", "reason"),
    [
        (spec(digest="x"), decided(digest="y"), "stale"),
        (spec(approvers=frozenset({"ann"})), decided(approver="eve"), "not_authorized"),
        (spec(approvers=frozenset({"ann"})), decided(), "not_authorized"),
        (spec(deadline=NOON), decided(time=NOON + timedelta(seconds=1)), "expired"),
    ],
)
def test_a_decision_that_may_not_count_is_refused_and_the_ask_stays_open(
    asked: AskSpec, command: RaisedCommand, reason: str
) -> None:
    book = Book()
    book.open(asked)
    assert reasons(book.receive(command)) == [reason]
    assert book.is_open("a")


def test_a_decision_that_fits_is_taken() -> None:
    book = Book()
    book.open(spec(digest="x", approvers=frozenset({"ann"}), deadline=NOON))
    effects = book.receive(decided(digest="x", approver="ann", time=NOON))
    assert [type(effect) for effect in effects] == [Deliver, Resolved]


def test_an_event_has_no_approver_and_may_not_decide_where_some_are_named() -> None:
    book = Book()
    book.open(spec(approvers=frozenset({"ann"})))
    raised = RaisedCommand(command_id="e", kind="event", name="a", data={"approved": True, "approver": "ann"})
    assert reasons(book.receive(raised)) == ["not_authorized"]


def test_a_quorum_needs_different_approvers_and_one_rejection_rejects() -> None:
    book = Book()
    book.open(spec(quorum=2))
    assert book.receive(decided(approver="ann", command_id="1")) == []
    assert reasons(book.receive(decided(approver="ann", command_id="2"))) == ["already_resolved"]
    effects = book.receive(decided(approver="bob", command_id="3"))
    assert outcomes(effects) == ["approved", "approved"], "each vote has its answer"
    assert [effect.command_id for effect in effects if isinstance(effect, Resolved)] == ["1", "3"]
    delivered = next(effect for effect in effects if isinstance(effect, Deliver))
    assert [vote.approver for vote in delivered.votes] == ["ann", "bob"]
    book.open(spec("b", quorum=2))
    assert outcomes(book.receive(decided("b", approved=False, command_id="4"))) == ["rejected"]


def test_a_quorum_that_cannot_be_reached_is_an_error() -> None:
    with pytest.raises(ValueError, match="quorum 2"):
        Book().open(spec(approvers=frozenset({"ann"}), quorum=2))


def test_late_decisions_are_told_apart() -> None:
    book = Book()
    book.open(spec("a"))
    book.open(spec("b"))
    book.receive(decided("a"))
    book.expire("b")
    assert reasons(book.receive(decided("a", command_id="2"))) == ["already_resolved"]
    assert reasons(book.receive(decided("b", command_id="3"))) == ["expired"]


def test_early_decisions_are_bounded() -> None:
    book = Book()
    for n in range(EARLY_MAX):
        assert book.receive(decided(f"x{n}", command_id=f"d{n}")) == []
    assert reasons(book.receive(decided("x", command_id="last"))) == ["unknown_approval"]


def test_escalation_lets_further_people_decide() -> None:
    book = Book()
    book.open(spec(approvers=frozenset({"ann"})))
    book.escalate("a", frozenset({"boss"}))
    assert outcomes(book.receive(decided(approver="boss"))) == ["approved"]


def test_every_transition_leads_to_an_outcome_or_another_state() -> None:
    for (state, trigger), (following, _) in TRANSITIONS.items():
        assert state is not AskState.RESOLVED, f"{trigger} changes what is over"
        assert following is not state


class Program(RuleBasedStateMachine):
    """A random run and a random world around it, over generations."""

    NAMES = ("a", "b", "c")

    def __init__(self) -> None:
        super().__init__()
        self.book = Book()
        self.ids = count()
        self.sent: list[str] = []
        self.answers: Counter[str] = Counter()
        self.resolved: Counter[tuple[str, str | None]] = Counter()
        self.delivered: Counter[str] = Counter()
        self.opened: list[str] = []
        self.children: list[str] = []
        self.waiting_votes: dict[str, list[str]] = {}
        self.closed = False

    def apply(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Deliver():
                    self.delivered[effect.approval_id] += 1
                case Resolved():
                    self.resolved[effect.approval_id, effect.command_id] += 1
                    if effect.command_id is not None:
                        self.answers[effect.command_id] += 1
                case Refused():
                    self.answers[effect.command_id] += 1
                case Forward():
                    self.answers[effect.command.command_id] += 0

    @precondition(lambda self: not self.closed)
    @rule(name=st.sampled_from(NAMES), quorum=st.integers(1, 3))
    def wait(self, name: str, quorum: int) -> None:
        approval_id = self.book.name_ask(name)
        self.opened.append(approval_id)
        self.apply(self.book.open(AskSpec(approval_id=approval_id, name=name, quorum=quorum)))

    @rule(name=st.sampled_from(NAMES), number=st.integers(1, 3), approved=st.booleans())
    def decide(self, name: str, number: int, approved: bool) -> None:
        approval_id = name if number == 1 else f"{name}~{number}"
        number = next(self.ids)
        self.send(decided(approval_id, approved, f"d{number}", approver=f"approver {number % 3}"))

    @rule(name=st.sampled_from(NAMES))
    def raise_event(self, name: str) -> None:
        self.send(RaisedCommand(command_id=f"e{next(self.ids)}", kind="event", name=name, data=1))

    def send(self, command: RaisedCommand) -> None:
        self.sent.append(command.command_id)
        self.apply(self.book.receive(command))
        assert self.book.receive(command) == [], "a repeat is not answered again"

    def an_open_ask(self, data: Any) -> str | None:
        open_asks = [one for one in self.opened if self.book.is_open(one)]
        return data.draw(st.sampled_from(open_asks)) if open_asks else None

    @rule(data=st.data(), what=st.sampled_from(["lapse", "revive", "cancel", "expire", "answered"]))
    def step(self, data: Any, what: str) -> None:
        approval_id = self.an_open_ask(data)
        if approval_id is None:
            return
        if what == "answered":
            self.apply(self.book.answered(approval_id, approved=True))
        else:
            self.apply(getattr(self.book, what)(approval_id))

    @precondition(lambda self: not self.closed)
    @rule()
    def next_generation(self) -> None:
        self.apply(self.book.close_generation())
        self.book = Book.restore(json.loads(json.dumps(self.book.carried())))

    @rule()
    def end(self) -> None:
        self.apply(self.book.close())
        self.closed = True
        assert set(self.answers) == set(self.sent)
        assert all(times == 1 for times in self.answers.values()), "one answer each"
        assert {ask for ask, _ in self.resolved} == set(self.opened), "every ask has ended"

    @invariant()
    def nothing_is_answered_or_delivered_twice(self) -> None:
        assert all(times <= 1 for times in self.answers.values())
        assert all(times <= 1 for times in self.resolved.values())
        assert all(times <= 1 for times in self.delivered.values())
        assert set(self.delivered) <= {ask for ask, _ in self.resolved}


TestProgram = Program.TestCase
TestProgram.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_a_childs_ask_is_forwarded_once_and_its_rest_refused_when_it_ends() -> None:
    book = Book()
    ask = ChildAsk(approval_id="c~a", instance_id="run:c", name="a")
    assert book.child_ask(ask) == []
    assert book.child_ask(ask) == []
    effects = book.receive(decided("c~a", command_id="1"))
    assert isinstance(effects[0], Forward)
    book.receive(decided("c~a", command_id="2"))
    ended = ask.model_copy(update={"phase": "resolved", "answered": ["1"]})
    restored = Book.restore(json.loads(json.dumps(book.carried())))
    assert reasons(restored.child_ask(ended)) == ["already_resolved"]
    assert restored.child_ask(ended) == []


def test_what_is_carried_over_generations_does_not_grow_with_the_children_that_have_asked() -> None:
    book = Book()
    for number in range(3 * CLOSED_CARRIED_MAX):
        name, child = f"g{number}-0001~approval", f"run-1:g{number}-0001"
        book.child_ask(ChildAsk(approval_id=name, instance_id=child))
        book.child_ask(ChildAsk(approval_id=name, instance_id=child, phase="resolved"))
    book.child_ask(ChildAsk(approval_id="open", instance_id="run-1:0001"))
    assert len(book.carried()["children"]) == CLOSED_CARRIED_MAX + 1
    restored = Book.restore(book.carried())
    late = restored.receive(decided(f"g{3 * CLOSED_CARRIED_MAX - 1}-0001~approval"))
    assert reasons(late) == ["already_resolved"]
