"""When a turn with the first of several results is offered."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from towline.scheduler.engine.model import RUNNING, Instance, Message, MessageKind
from towline.scheduler.server.joins import Joins


class Desk:
    """Joins with a clock that the test turns; each offer is noted."""

    def __init__(self, *, turns_take_s: float) -> None:
        self.offers: list[int] = []
        self.waits: list[float] = []
        self._due: list[Callable[[], None]] = []
        self.joins = Joins(self._later)
        for _ in range(100):
            self.joins.took(turns_take_s)

    def _later(self, seconds: float, then: Callable[[], None]) -> None:
        self.waits.append(seconds)
        self._due.append(then)

    def offer(self, instance: Instance, *, more_to_come: bool) -> None:
        self.joins.offer(instance, lambda: self.offers.append(instance.row), more_to_come=more_to_come)

    def time_is_up(self) -> None:
        due, self._due = self._due, []
        for then in due:
            then()


def instance(row: int = 1, *, last: MessageKind = MessageKind.RESULT) -> Instance:
    made = Instance(
        row=row,
        hub=1,
        id=f"i{row}",
        name="fan_out",
        version=None,
        execution_id="e",
        status=RUNNING,
        created=0,
        updated=0,
        start=b"",
    )
    made.inbox.append(Message(0, last, b"", durable=True))
    return made


def test_a_turn_with_nothing_more_to_come_is_offered_at_once() -> None:
    desk = Desk(turns_take_s=1.0)
    desk.offer(instance(), more_to_come=False)
    assert desk.offers == [1]


def test_a_turn_is_offered_at_once_while_workers_are_quick() -> None:
    desk = Desk(turns_take_s=0.004)
    desk.offer(instance(), more_to_come=True)
    assert desk.offers == [1]


def test_while_workers_are_slow_it_waits_for_the_other_results() -> None:
    desk = Desk(turns_take_s=1.0)
    fan_out = instance()
    desk.offer(fan_out, more_to_come=True)
    desk.offer(fan_out, more_to_come=True)
    assert desk.offers == []
    desk.offer(fan_out, more_to_come=False)
    assert desk.offers == [1]
    desk.time_is_up()
    assert desk.offers == [1], "it was offered already"


def test_it_does_not_wait_for_ever() -> None:
    desk = Desk(turns_take_s=1.0)
    desk.offer(instance(), more_to_come=True)
    desk.time_is_up()
    assert desk.offers == [1]


@pytest.mark.parametrize(("turns_take_s", "wait_s"), [(0.1, 0.025), (60.0, 0.05)])
def test_it_waits_for_a_quarter_of_what_a_turn_takes_and_for_50_ms_at_most(
    turns_take_s: float, wait_s: float
) -> None:
    desk = Desk(turns_take_s=turns_take_s)
    desk.offer(instance(), more_to_come=True)
    assert desk.waits == [pytest.approx(wait_s, rel=0.01)]


def test_an_event_from_outside_is_not_kept_waiting() -> None:
    desk = Desk(turns_take_s=1.0)
    desk.offer(instance(), more_to_come=True)
    desk.offer(instance(last=MessageKind.EXTERNAL), more_to_come=True)
    assert desk.offers == [1]


def test_each_instance_waits_for_itself() -> None:
    desk = Desk(turns_take_s=1.0)
    desk.offer(instance(1), more_to_come=True)
    desk.offer(instance(2), more_to_come=True)
    desk.offer(instance(2), more_to_come=False)
    assert desk.offers == [2]
    desk.time_is_up()
    assert desk.offers == [2, 1]


def test_what_is_forgotten_is_not_offered() -> None:
    desk = Desk(turns_take_s=1.0)
    desk.offer(instance(), more_to_come=True)
    desk.joins.clear()
    desk.time_is_up()
    assert desk.offers == []
