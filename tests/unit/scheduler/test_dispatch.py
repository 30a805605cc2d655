"""Which work goes first."""

from __future__ import annotations

import pytest

from towline.scheduler.server.dispatch import Dispatcher, Kind, Stream, Work

HUB = 1


@pytest.fixture
def dispatcher() -> Dispatcher:
    return Dispatcher()


def stream_of(capacity: int) -> Stream:
    return Stream(HUB, "worker", (capacity, capacity, capacity), (None, None, None))


def turn(name: str, instance: str, *, fresh: bool) -> Work:
    return Work(Kind.ORCHESTRATION, HUB, name, "", (HUB, instance), fresh=fresh)


def handed_out(dispatcher: Dispatcher, stream: Stream, count: int) -> list[str]:
    """The instances whose turns come out next, one at a time, each answered before the next."""
    found: list[str] = []
    for number in range(count):
        work = stream.pending.popleft()
        assert work is not None
        work.token = str(number)
        dispatcher.sent(stream, work)
        assert not isinstance(work.subject, str)
        found.append(work.subject[1])  # type: ignore[index]
        dispatcher.answered(stream, work.token)
    return found


def test_instances_under_way_go_before_new_ones_that_came_earlier(dispatcher: Dispatcher) -> None:
    for number in range(100):
        dispatcher.offer(turn("flood", f"new-{number}", fresh=True))
    for number in range(5):
        dispatcher.offer(turn("asks", f"under-way-{number}", fresh=False))
    stream = stream_of(1)
    dispatcher.attach(stream)

    first = handed_out(dispatcher, stream, 8)

    assert {name for name in first if name.startswith("under-way")} == {f"under-way-{n}" for n in range(5)}


def test_new_instances_are_not_shut_out_by_those_that_never_rest(dispatcher: Dispatcher) -> None:
    dispatcher.offer(turn("new", "new", fresh=True))
    for number in range(40):
        dispatcher.offer(turn("busy", f"busy-{number}", fresh=False))
    stream = stream_of(1)
    dispatcher.attach(stream)

    assert "new" in handed_out(dispatcher, stream, 9)


def test_within_a_class_work_goes_out_in_the_order_in_which_it_came(dispatcher: Dispatcher) -> None:
    for number in range(20):
        dispatcher.offer(turn(f"kind-{number % 3}", f"{number:02}", fresh=True))
    stream = stream_of(1)
    dispatcher.attach(stream)

    out = handed_out(dispatcher, stream, 20)

    assert out == sorted(out)


def take(dispatcher: Dispatcher, stream: Stream) -> str:
    """The instance whose turn `stream` has next; the turn is its id, and is not answered yet."""
    work = stream.pending.popleft()
    assert work is not None
    assert isinstance(work.subject, tuple)
    work.token = work.subject[1]
    dispatcher.sent(stream, work)
    return work.token


def run_turn(dispatcher: Dispatcher, stream: Stream, instance: str) -> None:
    """A turn of `instance`, which `stream` gets and answers."""
    dispatcher.offer(turn("run", instance, fresh=True))
    assert take(dispatcher, stream) == instance
    dispatcher.answered(stream, instance)


@pytest.fixture
def workers(dispatcher: Dispatcher) -> tuple[Stream, Stream]:
    """Two, of one turn each at a time; of equally busy ones the first gets work."""
    first, second = stream_of(1), stream_of(1)
    dispatcher.attach(first)
    dispatcher.attach(second)
    return first, second


def test_a_turn_goes_to_the_worker_that_had_the_instances_last_one(
    dispatcher: Dispatcher, workers: tuple[Stream, Stream]
) -> None:
    first, second = workers
    dispatcher.offer(turn("run", "other", fresh=True))  # the first is busy, so the second gets the instance
    run_turn(dispatcher, second, "instance")
    dispatcher.answered(first, take(dispatcher, first))

    dispatcher.offer(turn("run", "instance", fresh=False))

    assert take(dispatcher, second) == "instance"


def test_of_what_waits_a_worker_gets_its_own_instances_first(
    dispatcher: Dispatcher, workers: tuple[Stream, Stream]
) -> None:
    first, second = workers
    run_turn(dispatcher, first, "of the first")
    dispatcher.offer(turn("run", "busy", fresh=True))
    run_turn(dispatcher, second, "of the second")
    dispatcher.offer(turn("run", "busy too", fresh=True))
    for instance in ("by age", "of the second", "of the first"):
        dispatcher.offer(turn("run", instance, fresh=False))
    dispatcher.answered(first, take(dispatcher, first))
    assert take(dispatcher, first) == "by age"

    dispatcher.answered(first, "by age")
    dispatcher.answered(second, take(dispatcher, second))

    assert take(dispatcher, first) == "of the first"
    assert take(dispatcher, second) == "of the second"


def test_an_instance_whose_worker_is_full_or_gone_goes_to_another_one(
    dispatcher: Dispatcher, workers: tuple[Stream, Stream]
) -> None:
    first, second = workers
    run_turn(dispatcher, first, "instance")
    dispatcher.offer(turn("run", "busy", fresh=True))

    dispatcher.offer(turn("run", "instance", fresh=False))
    assert take(dispatcher, second) == "instance"
    dispatcher.answered(second, "instance")

    dispatcher.detach(second)
    dispatcher.answered(first, take(dispatcher, first))
    dispatcher.offer(turn("run", "instance", fresh=False))
    assert take(dispatcher, first) == "instance"


def test_a_worker_that_let_a_turn_lapse_is_no_longer_the_one_that_had_the_instance(
    dispatcher: Dispatcher, workers: tuple[Stream, Stream]
) -> None:
    first, second = workers
    run_turn(dispatcher, first, "instance")
    dispatcher.offer(turn("run", "instance", fresh=False))
    assert take(dispatcher, first) == "instance"
    assert [work.subject for _, work in dispatcher.expired(now=1.0)] == [(HUB, "instance")]
    for instance in ("busy", "busy too"):
        dispatcher.offer(turn("run", instance, fresh=True))
    for instance in ("by age", "other", "instance"):
        dispatcher.offer(turn("run", instance, fresh=False))
    dispatcher.answered(second, take(dispatcher, second))
    assert take(dispatcher, second) == "by age"

    dispatcher.answered(first, take(dispatcher, first))

    assert take(dispatcher, first) == "other"
