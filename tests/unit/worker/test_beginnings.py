"""That a run has started is said a moment after its first turn was reported, and never lost by that."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from datetime import UTC, datetime
from typing import Any

import pytest
from durabletask import task
from durabletask.internal import helpers as ph
from durabletask.internal import orchestrator_service_pb2 as pb
from tests.unit.worker.simulator import START, PaperOutlet, Simulator, make_worker

from towline.contracts.errors import PublishError
from towline.contracts.events import Event, RunCompleted, RunProgressed, RunStarted
from towline.worker import beginnings, sdk
from towline.worker.errors import TurnAbandonedError
from towline.worker.outlet import Outlet
from towline.worker.turn import Publish, RaiseOn, Turn

NOW = datetime(2026, 11, 30, tzinfo=UTC)


def started(run_id: str = "r") -> Publish:
    return Publish(Event(id=f"{run_id}/started", source="test", data=RunStarted(run_id=run_id, run_type="t")))


def completed(run_id: str = "r") -> Publish:
    data = RunCompleted(run_id=run_id, run_type="t", output=1, started_at=NOW, finished_at=NOW)
    return Publish(Event(id=f"{run_id}/outcome", source="test", data=data))


def progressed(run_id: str = "r") -> Publish:
    data = RunProgressed(run_id=run_id, status=1)
    return Publish(Event(id=f"{run_id}/progress/1", source="test", data=data))


class Kafka:
    """A publisher that can be held up, be away, and break on an event."""

    def __init__(self) -> None:
        self.requests: list[list[str]] = []
        """Ids of what was published together."""
        self.asked = asyncio.Event()
        self.answers = asyncio.Event()
        self.answers.set()
        self.away = False
        self.breaks_on = ""

    async def send_many(self, events: Sequence[Event]) -> None:
        self.asked.set()
        await self.answers.wait()
        if self.away:
            raise PublishError("away", event_id=events[0].id)
        if any(event.id == self.breaks_on for event in events):
            raise RuntimeError("cannot be written")
        self.requests.append([event.id for event in events])

    @property
    def sent(self) -> list[str]:
        return [event_id for request in self.requests for event_id in request]


@pytest.fixture
def kafka() -> Kafka:
    return Kafka()


@pytest.fixture
async def outlet(kafka: Kafka) -> AsyncGenerator[Outlet]:
    made = Outlet(kafka, asyncio.get_running_loop())
    yield made
    made.close()


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is put off does not go out by itself."""
    monkeypatch.setattr(beginnings, "PATIENCE_S", 3600.0)


async def deliver(outlet: Outlet, *said: Publish | RaiseOn, run_id: str = "r") -> None:
    async def raise_event(_: RaiseOn) -> None:
        raise AssertionError("nothing is raised here")

    await outlet.deliver(Turn(run_id, 3, list(said)), raise_event)


async def give_up(outlet: Outlet, kafka: Kafka) -> None:
    """The run's outcome is on its way, and its turn comes again."""
    turn = asyncio.create_task(deliver(outlet, completed()))
    await kafka.asked.wait()
    outlet.replace("r")
    with pytest.raises(TurnAbandonedError):
        await turn


async def until(condition: Any) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 — a task of the outlet's does it
            await asyncio.sleep(0.001)


async def test_it_is_put_off_and_goes_out_by_itself_soon(outlet: Outlet, kafka: Kafka) -> None:
    assert outlet.put_off(Turn("r", 0, [started()]))
    assert kafka.sent == []
    await until(lambda: kafka.sent == ["r/started"])
    assert outlet.knows_beginning("r")


@pytest.mark.usefixtures("patient")
async def test_it_goes_out_with_the_outcome_in_one_request_and_before_it(
    outlet: Outlet, kafka: Kafka
) -> None:
    outlet.put_off(Turn("r", 0, [started()]))
    outlet.put_off(Turn("other", 0, [started("other")]))

    await deliver(outlet, completed())

    assert kafka.requests == [["r/started", "r/outcome"]], "another run's waits for that one's next turn"


async def test_one_that_went_with_its_turn_hurries_no_other(outlet: Outlet, kafka: Kafka) -> None:
    outlet.put_off(Turn("r", 0, [started()]))
    await asyncio.sleep(beginnings.PATIENCE_S * 0.75)
    await deliver(outlet, completed())
    outlet.put_off(Turn("next", 0, [started("next")]))
    await asyncio.sleep(beginnings.PATIENCE_S * 0.5)
    assert kafka.requests == [["r/started", "r/outcome"]]
    await until(lambda: kafka.requests[1:] == [["next/started"]])


@pytest.mark.usefixtures("patient")
async def test_all_else_is_there_before_the_outcome(outlet: Outlet, kafka: Kafka) -> None:
    outlet.put_off(Turn("r", 0, [started()]))
    await deliver(outlet, progressed(), completed())
    assert kafka.requests == [["r/started", "r/progress/1"], ["r/outcome"]]


@pytest.mark.usefixtures("patient")
async def test_a_turn_that_says_nothing_is_reported_once_it_is_told(outlet: Outlet, kafka: Kafka) -> None:
    outlet.put_off(Turn("r", 0, [started()]))
    kafka.answers.clear()
    turn = asyncio.create_task(deliver(outlet))
    await kafka.asked.wait()
    assert not turn.done()
    kafka.answers.set()
    await turn
    assert kafka.sent == ["r/started"]


async def test_the_next_turn_waits_for_one_that_is_under_way(outlet: Outlet, kafka: Kafka) -> None:
    kafka.answers.clear()
    outlet.put_off(Turn("r", 0, [started()]))
    await kafka.asked.wait()
    turn = asyncio.create_task(deliver(outlet, completed()))
    await asyncio.sleep(0.05)
    assert not turn.done()
    kafka.answers.set()
    await turn
    assert kafka.requests == [["r/started"], ["r/outcome"]]


@pytest.mark.usefixtures("patient")
async def test_a_turn_that_is_replaced_leaves_it_to_the_next(outlet: Outlet, kafka: Kafka) -> None:
    outlet.put_off(Turn("r", 0, [started()]))
    kafka.answers.clear()
    await give_up(outlet, kafka)
    assert outlet.knows_beginning("r")
    kafka.answers.set()
    await deliver(outlet, completed())
    assert kafka.sent == ["r/started", "r/outcome"]


async def test_it_goes_out_by_itself_if_the_turn_that_had_it_gives_up(outlet: Outlet, kafka: Kafka) -> None:
    kafka.answers.clear()
    outlet.put_off(Turn("r", 0, [started()]))
    await give_up(outlet, kafka)
    kafka.answers.set()
    await until(lambda: kafka.sent == ["r/started"])


async def test_nothing_is_put_off_while_kafka_is_away(
    outlet: Outlet, kafka: Kafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("towline.worker.outlet._BACKOFF_S", (0.001,))
    kafka.away = True
    assert outlet.put_off(Turn("r", 0, [started()]))
    await until(lambda: outlet.is_stuck)
    assert not outlet.put_off(Turn("s", 0, [started("s")]))
    kafka.away = False
    await until(lambda: kafka.sent == ["r/started"])
    assert outlet.put_off(Turn("s", 0, [started("s")]))


@pytest.mark.usefixtures("patient")
async def test_what_kafka_has_not_yet_is_bounded(
    outlet: Outlet, kafka: Kafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(beginnings, "_OPEN_MAX", 2)
    taken = [outlet.put_off(Turn(run_id, 0, [started(run_id)])) for run_id in "abc"]
    assert taken == [True, True, False]
    await outlet.flush()
    assert outlet.put_off(Turn("c", 0, [started("c")]))


@pytest.mark.usefixtures("patient")
async def test_of_those_that_are_told_the_newest_are_known(
    outlet: Outlet, kafka: Kafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(beginnings, "_TOLD_MAX", 2)
    for run_id in "abc":
        await deliver(outlet, started(run_id), run_id=run_id)
    assert [outlet.knows_beginning(run_id) for run_id in "abc"] == [False, True, True]


@pytest.mark.usefixtures("patient")
async def test_only_a_beginning_is_put_off(outlet: Outlet) -> None:
    assert not outlet.put_off(Turn("r", 0, [started(), progressed()]))
    assert not outlet.put_off(Turn("r", 0, [progressed()]))
    assert not outlet.put_off(Turn("r", 0, []))


@pytest.mark.usefixtures("patient")
async def test_a_host_that_stops_tells_it_first(outlet: Outlet, kafka: Kafka) -> None:
    outlet.put_off(Turn("r", 0, [started()]))
    await outlet.flush()
    assert kafka.sent == ["r/started"]


@pytest.mark.usefixtures("patient")
async def test_a_host_that_may_not_wait_for_kafka_ends(outlet: Outlet, kafka: Kafka) -> None:
    kafka.answers.clear()
    outlet.put_off(Turn("r", 0, [started()]))
    ending = asyncio.create_task(outlet.flush())
    await kafka.asked.wait()
    outlet.close()
    async with asyncio.timeout(5):
        await ending
    assert not outlet.put_off(Turn("s", 0, [started("s")]))


async def test_one_that_cannot_be_told_stops_no_other(outlet: Outlet, kafka: Kafka) -> None:
    kafka.breaks_on = "bad/started"
    outlet.put_off(Turn("bad", 0, [started("bad")]))
    outlet.put_off(Turn("good", 0, [started("good")]))
    await kafka.asked.wait()

    await deliver(outlet, completed("good"), run_id="good")
    with pytest.raises(RuntimeError):
        await deliver(outlet, completed("bad"), run_id="bad")

    assert kafka.sent == ["good/started", "good/outcome"]


# Which turns say it.


def two_steps(context: task.OrchestrationContext, _: Any) -> Any:
    yield context.call_activity("first")
    yield context.call_activity("second")
    return "done"


class Forgetful(PaperOutlet):
    """Of a worker that does not know what was said before: another one had the turn."""

    def knows_beginning(self, instance_id: str) -> bool:
        return False


def beginnings_in(said: Sequence[Any]) -> list[Event]:
    return [one.event for one in said if isinstance(one, Publish) and isinstance(one.event.data, RunStarted)]


def replayed(simulator: Simulator, *events: pb.HistoryEvent) -> list[Event]:
    """What a worker that has none of the run's code says of its beginning in a turn with these events."""
    new = [ph.new_orchestrator_started_event(simulator.now), *events]
    said, _ = simulator._execute(new)  # pyright: ignore[reportPrivateUsage]
    return beginnings_in(said)


def test_another_worker_says_it_again_in_the_second_turn_and_only_there() -> None:
    simulator = Simulator.of(two_steps)
    (first,) = beginnings_in(simulator.start())
    assert first.time == START, "whoever says it, it is the same"

    elsewhere = Simulator.of(two_steps, worker=make_worker(Forgetful()))
    elsewhere.history = simulator.history
    done = ph.new_task_completed_event(1, '"1"')
    assert replayed(elsewhere, done) == [first]
    assert replayed(simulator, done) == [], "it is known there"

    simulator.turn(done)
    elsewhere.history = simulator.history
    assert replayed(elsewhere, ph.new_task_completed_event(2, '"2"')) == []


def asks(context: task.OrchestrationContext, _: Any) -> Any:
    yield context.wait_for_external_event("HumanApproval")


def sleeps(context: task.OrchestrationContext, _: Any) -> Any:
    yield context.create_timer(START)


def calls_an_entity(context: task.OrchestrationContext, _: Any) -> Any:
    yield context.call_entity(task_entity(), "run")


def signals_an_entity(context: task.OrchestrationContext, _: Any) -> Any:
    context.signal_entity(task_entity(), "run")
    yield context.wait_for_external_event("later")


def returns(context: task.OrchestrationContext, _: Any) -> Any:
    return "done"


def task_entity() -> Any:
    from durabletask.entities import EntityInstanceId

    return EntityInstanceId("agent", "one")


@pytest.mark.parametrize(
    ("orchestrator", "followed"),
    [
        (two_steps, True),
        (calls_an_entity, True),
        (asks, False),
        (sleeps, False),
        (signals_an_entity, False),
        (returns, False),
    ],
)
def test_a_turn_is_followed_by_another_if_it_has_called_somebody(orchestrator: Any, followed: bool) -> None:
    simulator = Simulator.of(orchestrator)
    simulator.start()
    assert sdk.is_followed(pb.OrchestratorResponse(actions=simulator.actions)) is followed


def test_what_is_no_turns_answer_is_followed_by_nothing_known() -> None:
    assert not sdk.is_followed(pb.AbandonOrchestrationTaskRequest())
