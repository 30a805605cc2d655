"""The ledger against a model of the append script: whatever is lost or repeated, text comes out right."""

from __future__ import annotations

import copy
import json
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from towline.worker.streams.ledger import Answer, Batch, Ledger, ToolCall, Turn


def new_ledger(**limits: Any) -> Ledger:
    return Ledger("w", **{"turn_chars_max": 10_000, "total_chars_max": 100_000, "remember_s": 10, **limits})


class ScriptModel:
    """What append.lua does, in memory."""

    def __init__(self) -> None:
        self.entries: list[tuple[str, dict[str, Any]]] = []
        self.turns: dict[str, tuple[int, str]] = {}
        self.writers: dict[str, int] = {}

    def append(self, batch: Batch) -> Answer:
        last = self.writers.get(batch.writer, 0)
        if batch.sequence <= last:
            return Answer(
                "repeated",
                [
                    (op.owner, self.turns[op.turn][0] if self.turns[op.turn][1] == op.owner else 0)
                    for op in batch.operations
                    if op.kind in ("begin", "restore")
                ],
            )
        if batch.sequence != last + 1:
            return Answer("lost")
        attempts: list[tuple[str, int]] = []
        for op in batch.operations:
            attempt, holder = self.turns.get(op.turn, (0, None))
            if op.kind == "begin":
                self.turns[op.turn] = (attempt + 1, op.owner)
                attempts.append((op.owner, attempt + 1))
                if attempt:
                    self._add("reset", attempt + 1, op)
            elif op.kind == "restore":
                if holder is not None and (attempt, holder) > (op.attempt, op.owner):
                    attempts.append((op.owner, 0))
                else:
                    self.turns[op.turn] = (max(op.attempt, 1), op.owner)
                    attempts.append((op.owner, max(op.attempt, 1)))
                    self._add("reset", max(op.attempt, 1), op)
            elif holder != op.owner:
                attempts.append((op.owner, 0))
            elif op.kind != "close":
                self._add(op.kind, attempt, op)
        self.writers[batch.writer] = batch.sequence
        return Answer("ok", attempts)

    def _add(self, kind: str, attempt: int, op: Any) -> None:
        self.entries.append((kind, json.loads(f"{op.prefix}{attempt}{op.suffix}")))

    def texts(self) -> dict[str, str]:
        texts: dict[str, str] = {}
        for kind, data in self.entries:
            if kind == "reset":
                texts.pop(data["turn"], None)
            elif kind == "token":
                assert len(texts.get(data["turn"], "")) == data["offset"]
                texts[data["turn"]] = texts.get(data["turn"], "") + data["text"]
            elif kind == "message":
                texts[data["turn"]] = data["text"]
        return texts


def flush(ledger: Ledger, script: ScriptModel) -> None:
    while not ledger.idle:
        for batch in ledger.due():
            ledger.acknowledge(batch, script.append(batch))


def test_adjoining_text_becomes_one_entry_and_tool_calls_keep_their_place() -> None:
    ledger, script = new_ledger(), ScriptModel()
    turn = ledger.open("run", "1", "Poet", now=0)
    for item in ("a", "b", ToolCall("look", "{}"), "c", "d"):
        ledger.say(turn, item, now=0)
    flush(ledger, script)
    assert [(kind, data.get("text", data.get("name"))) for kind, data in script.entries] == [
        ("token", "ab"),
        ("tool_call", "look"),
        ("token", "cd"),
    ]


def test_a_batch_stays_the_same_until_it_is_answered() -> None:
    ledger = new_ledger()
    turn = ledger.open("run", "1", "Poet", now=0)
    ledger.say(turn, "a", now=0)
    first = ledger.due()
    ledger.say(turn, "b", now=0)
    assert ledger.due() == first


def test_a_repeated_batch_is_written_once() -> None:
    ledger, script = new_ledger(), ScriptModel()
    turn = ledger.open("run", "1", "Poet", now=0)
    ledger.say(turn, "a", now=0)
    [batch] = ledger.due()
    script.append(batch)  # the answer is lost
    flush(ledger, script)
    ledger.finish(turn, "a", now=0)
    flush(ledger, script)
    assert [kind for kind, _ in script.entries] == ["token", "message"]


def test_text_beyond_the_limit_is_dropped_and_the_message_comes_whole() -> None:
    ledger, script = new_ledger(turn_chars_max=5), ScriptModel()
    turn = ledger.open("run", "1", "Poet", now=0)
    ledger.say(turn, "abc", now=0)
    flush(ledger, script)
    ledger.say(turn, "defghi", now=0)
    ledger.say(turn, "j", now=0)
    assert ledger.chars == 0
    ledger.finish(turn, "abcdefghij", now=0)
    flush(ledger, script)
    assert [kind for kind, _ in script.entries] == ["token", "reset", "message"]
    assert script.texts() == {"1": "abcdefghij"}


def test_a_finished_turn_is_forgotten_and_an_unwritten_one_is_not() -> None:
    ledger, script = new_ledger(remember_s=10), ScriptModel()
    turn = ledger.open("run", "1", "Poet", now=0)
    ledger.finish(turn, "text", now=0)
    ledger.expire(now=100)
    assert ledger.chars == 4
    flush(ledger, script)
    ledger.expire(now=100)
    assert ledger.chars == 0
    assert not ledger.remembered


def test_text_is_json_whatever_it_holds() -> None:
    ledger, script = new_ledger(), ScriptModel()
    text = '"}\\ \n\x00\u2028 💡 {'
    turn = ledger.open("run", '7"}', 'Po"et', now=0)
    ledger.say(turn, text, now=0)
    ledger.finish(turn, text, now=0)
    flush(ledger, script)
    assert script.entries[-1][1] == {"agent": 'Po"et', "turn": '7"}', "attempt": 1, "text": text}


def test_of_two_executions_with_the_same_attempt_the_later_one_has_the_turn() -> None:
    script = ScriptModel()
    lost = copy.deepcopy(script)
    zombie, ledger = new_ledger(), Ledger("a", turn_chars_max=10, total_chars_max=10, remember_s=10)
    old = zombie.open("run", "1", "Poet", now=0, wall_ms=9)
    flush(zombie, script)
    zombie.say(old, "old", now=0)
    script = copy.deepcopy(lost)
    new = ledger.open("run", "1", "Poet", now=0, wall_ms=10)
    flush(ledger, script)
    ledger.finish(new, "new", now=0)
    assert (old.attempt, new.attempt) == (1, 1)
    script = copy.deepcopy(lost)
    for one in (zombie, ledger):
        one.verify()
        flush(one, script)
    assert script.texts() == {"1": "new"}


class TwoWorkers(RuleBasedStateMachine):
    """Two workers, three turns, a Redis that loses answers and its newest data, and workers that die."""

    def __init__(self) -> None:
        super().__init__()
        self.serial = self.wall_ms = 0
        self.script = ScriptModel()
        self.saved = copy.deepcopy(self.script)
        self.ledgers = [self.ledger(), self.ledger()]
        self.texts: dict[int, str] = {}
        self.turns: dict[tuple[int, str], Turn] = {}
        self.current: dict[str, Turn] = {}
        self.finished: dict[str, str] = {}

    def ledger(self) -> Ledger:
        self.serial += 1
        return Ledger(f"w{self.serial}", turn_chars_max=40, total_chars_max=60, remember_s=1e9)

    workers = st.integers(0, 1)
    names = st.sampled_from(["1", "2", "child/1"])

    @rule(worker=workers, name=names)
    def begin(self, worker: int, name: str) -> None:
        if name in self.finished:
            return
        self.wall_ms += 1
        turn = self.ledgers[worker].open("run", name, "Poet", now=0, wall_ms=self.wall_ms)
        self.turns[worker, name] = self.current[name] = turn
        self.texts[id(turn)] = ""
        flush(
            self.ledgers[worker], self.script
        )  # the beginning reaches Redis: its order decides who is the zombie

    @rule(worker=workers, name=names, text=st.text("ab\n", max_size=8))
    def say(self, worker: int, name: str, text: str) -> None:
        turn = self.turns.get((worker, name))
        if turn is not None and not turn.ended:
            self.ledgers[worker].say(turn, text, now=0)
            self.texts[id(turn)] += text

    @rule(worker=workers, name=names)
    def finish(self, worker: int, name: str) -> None:
        turn = self.turns.get((worker, name))
        if turn is not None and not turn.ended:
            self.ledgers[worker].finish(turn, self.texts[id(turn)], now=0)
            if self.current.get(name) is turn:
                self.finished[name] = self.texts[id(turn)]

    @rule(worker=workers, answered=st.booleans())
    def write(self, worker: int, answered: bool) -> None:
        for batch in self.ledgers[worker].due():
            answer = self.script.append(batch)
            if answered:
                self.ledgers[worker].acknowledge(batch, answer)

    @rule()
    def sync(self) -> None:
        self.saved = copy.deepcopy(self.script)

    @precondition(lambda self: not self.finished)
    @rule(worker=workers)
    def die(self, worker: int) -> None:
        self.ledgers[worker] = self.ledger()
        for name in ("1", "2", "child/1"):
            turn = self.turns.pop((worker, name), None)
            if turn is not None and self.current.get(name) is turn:
                del self.current[name]

    @rule()
    def lose_the_newest(self) -> None:
        self.script = copy.deepcopy(self.saved)
        for ledger in self.ledgers:
            ledger.verify()

    @invariant()
    def texts_never_have_a_gap(self) -> None:
        self.script.texts()

    def teardown(self) -> None:
        for ledger in self.ledgers:
            ledger.verify()
        for _ in range(3):
            for ledger in self.ledgers:
                flush(ledger, self.script)
        texts = self.script.texts()
        for name, text in self.finished.items():
            if not self.current[name].failure:
                assert texts.get(name, "") == text


TestTwoWorkers = TwoWorkers.TestCase
TestTwoWorkers.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
