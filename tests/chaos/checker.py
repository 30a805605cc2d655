"""The promises of the wire contract, checked over everything that is left afterwards. Pure.

| rule | violated by |
|---|---|
| `kafka_lost` | a record that Kafka acknowledged and does not hold |
| `vanished` | a record without any trace: neither handled, nor dead-lettered, nor rejected |
| `not_trusted` | a good event among the dead letters |
| `no_outcome`, `two_outcomes` | a run without its one outcome |
| `no_request` | an event about a run that nobody asked for |
| `repeat_differs` | an event id that came again with another type or about another run |
| `order` | events of one run in an order that `RUN` or `APPROVAL` does not have |
| `no_answer`, `two_answers` | a decision or control command without its one answer |
| `unexpected_outcome` | a run that ended as it must not, for example failed because a part was killed |
| `wrong_output` | an output that does not follow from the input |
| `no_effect`, `foreign_result`, `result_reused` | a result that no execution gave, or one used twice |
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from tests.chaos.history import MARK, Effect, History, Record, Sent

OUTCOMES: Final = frozenset({"run.completed", "run.failed", "run.cancelled", "run.rejected"})
_REFUSED: Final = ("approval.refused", "control.refused")
_CONTROL_DONE: Final = "control.done"
"""Stands for the `run.progressed` that answers a suspend or resume: it may come after the run's end."""

RUN: Final[Mapping[tuple[str, str], str]] = {
    ("new", "run.started"): "running",
    ("new", "run.rejected"): "ended",
    # Cancelled before its first turn, or by a bridge that had to terminate it.
    ("new", "run.cancelled"): "ended",
    ("running", "run.progressed"): "running",
    ("running", "approval.requested"): "running",
    ("running", "approval.resolved"): "running",
    ("running", "run.completed"): "ended",
    ("running", "run.failed"): "ended",
    ("running", "run.cancelled"): "ended",
    **{
        (state, answer): state
        for state in ("new", "running", "ended")
        for answer in (*_REFUSED, _CONTROL_DONE)
    },
}
"""What may follow what in one run, repeats left out."""

APPROVAL: Final[Mapping[tuple[str, str], str]] = {
    ("new", "approval.requested"): "open",
    ("open", "approval.resolved"): "closed",
    **{(state, "approval.refused"): state for state in ("new", "open", "closed")},
}
"""The same for one approval, which one decision resolves."""


@dataclass(frozen=True, slots=True)
class Violation:
    """One broken promise."""

    rule: str
    about: str
    """A run's id, an event's id or a record's mark."""
    what: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.about}: {self.what}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was found, and how much was looked at."""

    violations: tuple[Violation, ...]
    counts: Mapping[str, int]


@dataclass(slots=True)
class _View:
    """The history, looked at once: without repeats, by run."""

    history: History
    events: dict[str, list[Record]] = field(default_factory=lambda: defaultdict(list))
    """First occurrences by run, in order; the outcome where its time puts it."""
    outcomes: dict[str, list[Record]] = field(default_factory=lambda: defaultdict(list))
    answers: dict[str, list[Record]] = field(default_factory=lambda: defaultdict(list))
    """First occurrences by the id of the command that they answer."""
    repeats: list[tuple[Record, Record]] = field(default_factory=list[tuple[Record, Record]])
    dead_marks: set[str] = field(default_factory=set[str])

    def __post_init__(self) -> None:
        first: dict[str, Record] = {}
        for record in self.history.published:
            if (known := first.setdefault(record.id, record)) is not record:
                self.repeats.append((known, record))
        commands = {sent.event_id for sent in self.history.sent if sent.kind not in ("request", "garbage")}
        # Offsets order one partition only; a producer's times order its events and results.
        for record in sorted(first.values(), key=_moment):
            run_id = record.data.get("run_id", "")
            self.events[run_id].append(record)
            if record.type in OUTCOMES:
                self.outcomes[run_id].append(record)
            command = record.id.rpartition("/")[2]
            if record.topic == "events" and command in commands:
                self.answers[command].append(record)
        self.dead_marks = {record.headers.get(MARK, "") for record in self.history.dead}

    @property
    def requests(self) -> dict[str, Sent]:
        return {sent.run_id: sent for sent in self.history.sent if sent.kind == "request"}

    def cancelled(self, run_id: str) -> bool:
        return any(record.type == "run.cancelled" for record in self.outcomes[run_id])


def _moment(record: Record) -> tuple[int, bool, int, int]:
    return record.timestamp_ms, record.topic == "results", record.partition, record.offset


def check(history: History) -> Verdict:
    """Every violation of every rule."""
    view = _View(history)
    violations = tuple(found for rule in RULES for found in rule(view))
    rejected = sum(record.type == "run.rejected" for run in view.outcomes.values() for record in run)
    counts = {
        "sent": len({sent.mark for sent in history.sent}),
        "dead-lettered": len({record.origin for record in history.dead}),
        "rejected": rejected,
        "runs": len(view.requests),
        "outcomes": sum(map(len, view.outcomes.values())),
        "events": len(history.published),
        "repeats": len(view.repeats),
        "answers": sum(map(len, view.answers.values())),
        "effects": len(history.effects),
        "effects repeated": len(history.effects) - len({(e.run_id, e.step) for e in history.effects}),
    }
    counts["handled"] = counts["sent"] - counts["rejected"] - len(view.dead_marks)
    return Verdict(violations, counts)


# -- what went in ------------------------------------------------------------------------------------------


def kafka_keeps_what_it_acknowledged(view: _View) -> Iterator[Violation]:
    held = {record.headers.get(MARK) for record in view.history.taken}
    for sent in view.history.sent:
        if sent.acknowledged and sent.mark not in held:
            yield Violation("kafka_lost", sent.mark, f"an acknowledged {sent.kind} is not on {sent.topic}")


def nothing_vanishes(view: _View) -> Iterator[Violation]:
    """Garbage is a dead letter; and what is on the topics is known to the load."""
    known = {sent.mark: sent for sent in view.history.sent}
    letters = {record.origin for record in view.history.dead}
    for record in view.history.taken:
        mark = record.headers.get(MARK, "")
        sent = known.get(mark)
        lettered = (record.topic, record.partition, record.offset) in letters
        if sent is None:
            yield Violation("no_request", mark, f"nobody sent what is at {record.topic}/{record.offset}")
        elif sent.kind == "garbage" and not lettered:
            yield Violation("vanished", mark, f"what is no event is no dead letter: {record.value!r:.80}")
        elif sent.kind != "garbage" and lettered:
            yield Violation("not_trusted", mark, f"a good {sent.kind} of {sent.run_id} is a dead letter")


# -- runs --------------------------------------------------------------------------------------------------


def every_run_has_one_outcome(view: _View) -> Iterator[Violation]:
    for run_id, sent in view.requests.items():
        if sent.mark in view.dead_marks:
            continue
        outcomes = view.outcomes[run_id]
        if not outcomes:
            told = [record.type for record in view.events[run_id]]
            yield Violation("no_outcome", run_id, f"{sent.run_type}; of it there is {told}")
        if len(outcomes) > 1:
            yield Violation("two_outcomes", run_id, str([(one.id, one.type) for one in outcomes]))
        for outcome in outcomes:
            if sent.ends and outcome.type not in sent.ends:
                said = f"{outcome.value!r:.300}"
                yield Violation("unexpected_outcome", run_id, f"{sent.run_type}: {outcome.type} {said}")


def nothing_is_told_of_runs_that_nobody_asked_for(view: _View) -> Iterator[Violation]:
    named = {sent.run_id for sent in view.history.sent}
    for run_id, events in view.events.items():
        if run_id not in view.requests:
            told = {record.type for record in events}
            # Commands to runs that do not exist are answered.
            if run_id not in named or not told <= set(_REFUSED):
                yield Violation("no_request", run_id, f"{sorted(told)} without a request")


def repeats_say_the_same(view: _View) -> Iterator[Violation]:
    for first, again in view.repeats:
        if (first.type, first.data.get("run_id")) != (again.type, again.data.get("run_id")):
            yield Violation("repeat_differs", first.id, f"first {first.type}, again {again.type}")


def events_are_in_order(view: _View) -> Iterator[Violation]:
    for run_id, events in view.events.items():
        yield from _walk(run_id, events, RUN)
        asks: dict[str, list[Record]] = defaultdict(list)
        for record in events:
            if record.type.startswith("approval."):
                asks[record.data["approval_id"]].append(record)
        for name, ask in asks.items():
            yield from _walk(f"{run_id}/{name}", ask, APPROVAL)


def _walk(about: str, events: list[Record], table: Mapping[tuple[str, str], str]) -> Iterator[Violation]:
    state, told = "new", list[str]()
    for record in events:
        kind = _CONTROL_DONE if "/control/" in record.id and record.type == "run.progressed" else record.type
        following = table.get((state, kind))
        if following is None:
            yield Violation("order", about, f"{kind} when {state}, after {told}")
            return
        state = following
        told.append(kind)


# -- commands ----------------------------------------------------------------------------------------------


def every_command_has_one_answer(view: _View) -> Iterator[Violation]:
    commands = {sent.event_id: sent for sent in view.history.sent if sent.kind not in ("request", "garbage")}
    unrefused = Counter(
        sent.run_id
        for event_id, sent in commands.items()
        if sent.kind == "cancel" and not view.answers[event_id]
    )
    cancels = {sent.run_id: event_id for event_id, sent in commands.items() if sent.kind == "cancel"}
    for event_id, sent in commands.items():
        answers = [record.type for record in view.answers[event_id]]
        if len(answers) > 1:
            yield Violation("two_answers", event_id, f"{sent.kind} of {sent.run_id}: {answers}")
        # What answers a cancel that took effect is the outcome.
        elif not answers and not (sent.kind == "cancel" and view.cancelled(sent.run_id)):
            yield Violation("no_answer", event_id, f"{sent.kind} of {sent.run_id}")
    for run_id, event_id in cancels.items():
        if view.cancelled(run_id) and not unrefused[run_id]:
            yield Violation("two_answers", event_id, f"{run_id} is cancelled, and every cancel was refused")


# -- outputs -----------------------------------------------------------------------------------------------

Expected = Callable[[Any], tuple[dict[str, Any], list[str]]]
"""Of a run type: its input's output (without ``used``), and the steps whose results it uses."""


def _count(value: Any) -> tuple[dict[str, Any], list[str]]:
    steps = value["steps"]
    return {"total": sum(range(steps))}, [f"step-{number}" for number in range(steps)]


def _review(value: Any) -> tuple[dict[str, Any], list[str]]:
    approved = value["approved"]
    return {"approved": approved}, ["draft", "publish" if approved else "discard"]


def _family(value: Any) -> tuple[dict[str, Any], list[str]]:
    child, steps = _count(value)
    return child, ["before", *steps]


def _wait(_: Any) -> tuple[dict[str, Any], list[str]]:
    return {}, ["booked"]


EXPECTED: Final[Mapping[str, Expected]] = {
    "count": _count,
    "review": _review,
    "family": _family,
    "wait": _wait,
    "agent.Echo": lambda value: ({"text": f"echo {value['message']}"}, []),
}


def outputs_follow_from_inputs(view: _View) -> Iterator[Violation]:
    effects: dict[str, list[Effect]] = defaultdict(list)
    for effect in view.history.effects:
        effects[effect.run_id].append(effect)
    for run_id, sent in view.requests.items():
        for record in view.outcomes[run_id]:
            if record.type == "run.completed":
                yield from _output(run_id, sent, record.data["output"], effects[run_id])


def _output(run_id: str, sent: Sent, output: Any, effects: list[Effect]) -> Iterator[Violation]:
    wanted, steps = EXPECTED[sent.run_type](sent.input)
    used: list[str] = output.pop("used", [])
    if any(output.get(name) != value for name, value in wanted.items()) or len(used) != len(steps):
        yield Violation("wrong_output", run_id, f"{output}, {len(used)} used; not {wanted}, {len(steps)}")
        return
    if len(set(used)) != len(used):
        yield Violation("result_reused", run_id, f"{used}")
    for step, token in zip(steps, used, strict=True):
        tokens = {effect.token for effect in effects if effect.step == step}
        if not tokens:
            yield Violation("no_effect", run_id, f"{step} was never executed")
        elif token not in tokens:
            yield Violation("foreign_result", run_id, f"{token} is no result of {step}")


RULES: Final = (
    kafka_keeps_what_it_acknowledged,
    nothing_vanishes,
    every_run_has_one_outcome,
    nothing_is_told_of_runs_that_nobody_asked_for,
    repeats_say_the_same,
    events_are_in_order,
    every_command_has_one_answer,
    outputs_follow_from_inputs,
)
