"""Work that no connected worker takes is said, once, with the run that waits and the way to mend it."""

from __future__ import annotations

import pytest

from towline.scheduler.engine.model import Activity
from towline.scheduler.server.dispatch import Dispatcher, Filter, Kind, Stream, Work
from towline.scheduler.server.unclaimed import Unclaimed, unclaimed

HUB = 1
AFTER_S = 30.0


@pytest.fixture
def dispatcher() -> Dispatcher:
    return Dispatcher()


@pytest.fixture
def watch(dispatcher: Dispatcher) -> Unclaimed:
    return Unclaimed(dispatcher, lambda: {"orders": HUB}, after_s=AFTER_S)


def lines(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    """Event and explanation of what was said since the last question."""
    found = [(record.message, record.__dict__["error"]) for record in caplog.records]
    caplog.clear()
    return found


def worker(dispatcher: Dispatcher, *activities: str, hub: int = HUB, capacity: int = 9) -> Stream:
    names: Filter = {name: frozenset() for name in activities}
    stream = Stream(hub, "w", (capacity, capacity, capacity), ({}, names, {}))
    dispatcher.attach(stream)
    return stream


def activity(name: str, run: str = "run-1", version: str = "", row: int = 1) -> Work:
    subject = Activity(row, HUB, run, "e", 1, name, version, b"", 1)
    return Work(Kind.ACTIVITY, HUB, name, version, subject)


CHAGRE = (
    "no connected worker takes activity 'chagre_card', for which run-1 waits: "
    "start one that registers it, or correct the name"
)


def test_a_name_that_no_worker_knows_is_said_with_its_run_when_it_has_waited_a_while(
    dispatcher: Dispatcher, watch: Unclaimed, caplog: pytest.LogCaptureFixture
) -> None:
    worker(dispatcher, "charge_card")
    dispatcher.offer(activity("chagre_card"))
    dispatcher.offer(activity("charge_card", "run-2", row=2))
    for now in (0.0, 10.0, 29.0):
        watch.look(now)
    assert lines(caplog) == []

    watch.look(30.0)

    [record] = caplog.records
    assert record.levelname == "WARNING"
    facts = {name: record.__dict__[name] for name in ("hub", "kind", "work", "id", "count")}
    assert facts == {"hub": "orders", "kind": "activity", "work": "chagre_card", "id": "run-1", "count": 1}
    assert lines(caplog) == [("work.unclaimed", CHAGRE)]


def test_it_is_said_again_after_ten_minutes_and_not_sooner(
    dispatcher: Dispatcher, watch: Unclaimed, caplog: pytest.LogCaptureFixture
) -> None:
    worker(dispatcher, "charge_card")
    dispatcher.offer(activity("chagre_card"))
    watch.look(0.0)
    watch.look(30.0)
    lines(caplog)

    for now in range(31, 630):
        watch.look(float(now))
    assert lines(caplog) == []
    watch.look(630.0)
    assert lines(caplog) == [("work.unclaimed", CHAGRE)]


def test_a_worker_that_knows_the_name_ends_the_wait_whether_or_not_it_has_room(
    dispatcher: Dispatcher, watch: Unclaimed, caplog: pytest.LogCaptureFixture
) -> None:
    worker(dispatcher, "charge_card")
    dispatcher.offer(activity("chagre_card"))
    watch.look(0.0)
    late = worker(dispatcher, "chagre_card", capacity=0)
    watch.look(40.0)
    dispatcher.detach(late)
    watch.look(50.0)
    watch.look(79.0)
    assert lines(caplog) == [], "it counts from when nobody takes it"

    watch.look(80.0)
    assert lines(caplog) == [("work.unclaimed", CHAGRE)]


def test_a_name_that_is_missing_from_time_to_time_is_said_every_ten_minutes_only(
    dispatcher: Dispatcher, watch: Unclaimed, caplog: pytest.LogCaptureFixture
) -> None:
    worker(dispatcher, "charge_card")
    for begin in (0.0, 100.0, 200.0):
        dispatcher.offer(activity("chagre_card"))
        watch.look(begin)
        watch.look(begin + 40.0)
        dispatcher.detach(worker(dispatcher, "chagre_card"))
        watch.look(begin + 50.0)
        dispatcher.clear()
    assert lines(caplog) == [("work.unclaimed", CHAGRE)]


def test_without_any_worker_one_line_says_that_and_names_no_work(
    dispatcher: Dispatcher, watch: Unclaimed, caplog: pytest.LogCaptureFixture
) -> None:
    worker(dispatcher, "chagre_card", hub=2)
    dispatcher.offer(activity("chagre_card"))
    dispatcher.offer(activity("charge_card", "run-2", row=2))
    dispatcher.offer(Work(Kind.ORCHESTRATION, HUB, "order", "", (HUB, "run-3")))
    watch.look(0.0)
    assert lines(caplog) == []

    watch.look(30.0)
    watch.look(60.0)

    said = "no worker is connected to task hub 'orders', and 3 work items wait: start one"
    assert lines(caplog) == [("work.no_worker", said)]


def test_a_version_that_no_worker_takes_is_said_as_such(
    dispatcher: Dispatcher, watch: Unclaimed, caplog: pytest.LogCaptureFixture
) -> None:
    dispatcher.attach(Stream(HUB, "w", (9, 9, 9), ({"order": frozenset({"2"})}, {}, {})))
    dispatcher.offer(Work(Kind.ORCHESTRATION, HUB, "order", "1", (HUB, "run-1")))
    watch.look(0.0)
    watch.look(30.0)
    [(_, said)] = lines(caplog)
    assert said.startswith("no connected worker takes orchestration 'order' of version '1', for which run-1")


def test_many_names_are_said_a_few_at_a_time(
    dispatcher: Dispatcher, watch: Unclaimed, caplog: pytest.LogCaptureFixture
) -> None:
    worker(dispatcher, "charge_card")
    for number in range(25):
        dispatcher.offer(activity(f"{'x' * 5_000}{number:02}", row=number))
    watch.look(0.0)
    watch.look(30.0)
    first = lines(caplog)
    watch.look(35.0)
    watch.look(40.0)
    rest = lines(caplog)
    assert (len(first), len(rest)) == (10, 15)
    assert max(len(said) for _, said in first + rest) < 500


def test_what_no_worker_takes_is_counted_by_kind(dispatcher: Dispatcher) -> None:
    worker(dispatcher, "charge_card", capacity=1)
    for row in range(3):
        dispatcher.offer(activity("chagre_card", row=row))
        dispatcher.offer(activity("charge_card", row=10 + row))
    dispatcher.offer(Work(Kind.ENTITY, HUB, "counter", "", (HUB, "@counter@one")))
    assert unclaimed(dispatcher) == [0, 3, 1]
