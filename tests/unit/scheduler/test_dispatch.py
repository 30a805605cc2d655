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
