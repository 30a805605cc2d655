"""When an outcome may end a stream, and in which order offsets move on."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from towline.contracts.events import Event, RunCancelled
from towline.relay.ends import Held, HeldOutcomes, Progress
from towline.relay.projection import project
from towline.relay.store import Step

ENDED = project(
    Event(id="r/outcome", source="s", data=RunCancelled(run_id="r", finished_at=datetime.now(UTC))),
    recorded_ms=0,
)


def held(barrier: tuple[str, int] | None = None, due_at: float = 0) -> Held:
    assert ENDED is not None
    return Held("results:0", 5, ENDED, barrier, due_at)


def outcomes(*some: Held, turns_close_s: float = 2) -> HeldOutcomes:
    made = HeldOutcomes(turns_close_s=turns_close_s)
    for one in some:
        made.add(one, now=0)
    return made


def test_an_outcome_waits_for_the_events_before_it() -> None:
    waiting = outcomes(held(barrier=("events:0", 10)))
    assert waiting.barriers() == {"events:0"}
    assert waiting.ready({"events:0": 9}, now=1) == []
    assert [mode for _, mode in waiting.ready({"events:0": 10}, now=2)] == ["end"]


def test_events_that_do_not_move_are_not_waited_for_for_ever() -> None:
    waiting = outcomes(held(barrier=("events:0", 10)))
    assert waiting.ready({"events:0": 3}, now=1) == []
    assert waiting.ready({"events:0": 4}, now=29) == []
    assert waiting.ready({"events:0": 4}, now=58) == []
    assert len(waiting.ready({"events:0": 4}, now=60)) == 1


def test_the_next_look_is_due_with_the_first_outcome() -> None:
    assert outcomes().due_in(now=1) is None
    assert outcomes(held(due_at=5)).due_in(now=3) == 2
    assert outcomes(held(due_at=5)).due_in(now=6) == 0


def test_an_outcome_waits_until_it_is_due() -> None:
    waiting = outcomes(held(due_at=5))
    assert waiting.ready({}, now=4.9) == []
    assert len(waiting.ready({}, now=5)) == 1


def test_open_turns_are_waited_for_and_then_not() -> None:
    waiting = outcomes(held(), turns_close_s=2)
    assert [mode for _, mode in waiting.ready({}, now=1)] == ["end"]
    assert [mode for _, mode in waiting.ready({}, now=2.9)] == ["end"]
    assert [mode for _, mode in waiting.ready({}, now=3)] == ["force"]


def test_what_was_applied_is_held_no_more() -> None:
    waiting = outcomes(held())
    [(one, _)] = waiting.ready({}, now=1)
    waiting.release(one)
    assert len(waiting) == 0


@given(st.permutations(range(8)))
def test_offsets_move_on_without_gaps_whatever_is_done_first(order: list[int]) -> None:
    progress = Progress()
    for offset in range(8):
        progress.admit(offset * 2)
    left: list[int] = []
    for done, offset in enumerate(order, start=1):
        progress.finish(Step("p", offset * 2))
        left += [step.offset for step in progress.drain()]
        finished = set(order[:done])
        expected = next((n for n in range(8) if n not in finished), 8)
        assert left == [n * 2 for n in range(expected)]


def test_the_size_of_what_is_held_is_known_so_that_large_outcomes_are_bounded_too() -> None:
    one = held()
    sized = replace(one, change=replace(one.change, fields={"outcome": "x" * 1_000}))
    waiting = outcomes(sized)
    assert waiting.size_chars == 1_000
    waiting.add(sized, now=0)
    assert waiting.size_chars == 1_000, "the same record again is held once"
    waiting.release(sized)
    waiting.release(sized)
    assert waiting.size_chars == 0
