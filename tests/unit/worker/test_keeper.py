"""What is kept between turns, and when it is not gone on with."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Generator
from contextvars import ContextVar
from typing import Any

import durabletask.internal.helpers as ph
import durabletask.internal.orchestrator_service_pb2 as pb
import pytest
from durabletask.task import when_any
from tests.unit.worker.simulator import ends_only, make_worker

from towline.contracts.durable import DECISION_EVENT, RaisedCommand, RunEnvelope, wrap_input
from towline.contracts.errors import PayloadMissingError, PayloadTooLargeError
from towline.contracts.payloads import PayloadReference
from towline.worker.dispatcher import Keeper, KeeperOptions
from towline.worker.errors import HistoryMissingError
from towline.worker.turn import Turn

LONG_AGO, NOW = 0.0, 1_000.0


class Scheduler:
    """Builds the requests of one instance whose code calls one activity after the other."""

    def __init__(
        self, name: str, *, instance_id: str = "run-1", execution_id: str = "first", native: bool = False
    ) -> None:
        self.instance_id = instance_id
        self.execution_id = execution_id
        self.past: list[pb.HistoryEvent] = []
        self.second = 0
        envelope = RunEnvelope(run_id=instance_id, run_type=name)
        value = None if native else wrap_input(envelope, None)
        started = ph.new_execution_started_event(name, instance_id, json.dumps(value))
        self.new = [self._turn_started(), started]

    def _turn_started(self) -> pb.HistoryEvent:
        self.second += 1
        event = ph.new_orchestrator_started_event()
        event.timestamp.FromSeconds(1_800_000_000 + self.second)
        return event

    def request(self) -> pb.OrchestratorRequest:
        request = pb.OrchestratorRequest(
            instanceId=self.instance_id, pastEvents=self.past, newEvents=self.new
        )
        request.executionId.value = self.execution_id
        return request

    def accept(self, response: pb.OrchestratorResponse, result: Any = "done") -> None:
        """Commit the turn; the activity that it asked for is done."""
        (action,) = response.actions
        task = action.scheduleTask
        confirmed = ph.new_task_scheduled_event(action.id, task.name, task.input.value)
        self.past += [*self.new, confirmed, ph.new_orchestrator_completed_event()]
        self.new = [self._turn_started(), ph.new_task_completed_event(action.id, json.dumps(result))]


def steps(context: Any, _: Any) -> Generator[Any, Any, None]:
    while True:
        yield context.call_activity("step", input=1)


def make_keeper(*code: Any, **options: Any) -> Keeper:
    worker = make_worker()
    for orchestrator in code:
        worker.add_orchestrator(orchestrator)
    return Keeper(worker, KeeperOptions(**{"replay": "never", **options}))


def take_turn(
    keeper: Keeper, scheduler: Scheduler, *, now: float = NOW, result: str = "done"
) -> pb.OrchestratorResponse:
    request = scheduler.request()
    turn = keeper._worker.begin_turn(request)
    carried = keeper.carry_out(turn, request, "token")
    keeper.keep(request, carried, now)
    response = carried.answer.message
    scheduler.accept(response, result)
    return response


def test_a_turn_goes_on_where_the_last_one_ended() -> None:
    keeper, scheduler = make_keeper(steps), Scheduler("steps")
    for _ in range(5):
        take_turn(keeper, scheduler)
    assert keeper.turns == {"replayed": 1, "kept": 4}


def test_a_turn_that_another_worker_took_in_between_is_replayed() -> None:
    ours, theirs, scheduler = make_keeper(steps), make_keeper(steps), Scheduler("steps")
    take_turn(ours, scheduler)
    take_turn(theirs, scheduler)
    take_turn(ours, scheduler)
    assert ours.turns == {"replayed": 2, "stale": 1}


def test_what_is_kept_needs_no_more_of_a_long_history_than_its_first_and_last_turn() -> None:
    keeper, scheduler = make_keeper(steps), Scheduler("steps")
    for _ in range(3):
        take_turn(keeper, scheduler)
    request = ends_only(scheduler.request())
    assert len(request.pastEvents) < len(scheduler.past)

    assert keeper.goes_on(request)
    carried = keeper.carry_out(keeper._worker.begin_turn(request), request, "token")

    (action,) = carried.answer.message.actions
    assert (action.id, action.scheduleTask.name) == (4, "step")
    keeper.keep(request, carried, NOW)
    scheduler.accept(carried.answer.message)
    take_turn(keeper, scheduler)
    assert keeper.turns == {"replayed": 1, "kept": 4}


def test_the_history_is_fetched_for_a_turn_after_one_of_another_worker() -> None:
    ours, theirs, scheduler = make_keeper(steps), make_keeper(steps), Scheduler("steps")
    for keeper in (ours, ours, ours, theirs):
        take_turn(keeper, scheduler)

    assert not ours.goes_on(ends_only(scheduler.request()))

    assert len(ours) == 0
    take_turn(ours, scheduler)
    assert ours.turns == {"replayed": 2, "kept": 2, "stale": 1}


def test_it_is_fetched_for_the_turns_that_are_replayed_to_find_code_that_is_not_deterministic() -> None:
    keeper, scheduler = make_keeper(steps, replay="sampled"), Scheduler("steps")
    for _ in range(3):
        take_turn(keeper, scheduler)
    fetched = 0
    for _ in range(100):
        request = ends_only(scheduler.request())
        if not keeper.goes_on(request):
            fetched += 1
            request = scheduler.request()
        carried = keeper.carry_out(keeper._worker.begin_turn(request), request, "token")
        keeper.keep(request, carried, NOW)
        scheduler.accept(carried.answer.message)
    assert fetched == 16 - 2 + 1, "the first 16 of an orchestrator, then one in 64"
    assert keeper.turns["kept"] == 100 - fetched


def test_a_turn_without_its_history_is_given_up_if_what_was_kept_has_gone_meanwhile() -> None:
    keeper, scheduler = make_keeper(steps), Scheduler("steps")
    for _ in range(3):
        take_turn(keeper, scheduler)
    request = ends_only(scheduler.request())
    assert keeper.goes_on(request)
    keeper.close()

    with pytest.raises(HistoryMissingError):
        keeper.carry_out(keeper._worker.begin_turn(request), request, "token")


def test_a_turn_that_was_not_accepted_is_not_gone_on_with() -> None:
    keeper, scheduler = make_keeper(steps), Scheduler("steps")
    request = scheduler.request()
    carried = keeper.carry_out(keeper._worker.begin_turn(request), request, "token")
    keeper.keep(request, carried, NOW)
    # Handed out again, to another worker, with an event more.
    scheduler.new.insert(1, ph.new_event_raised_event("other", "1"))
    take_turn(make_keeper(steps), scheduler)
    take_turn(keeper, scheduler)
    assert keeper.turns == {"replayed": 2, "stale": 1}


def test_what_a_refused_report_left_is_dropped() -> None:
    keeper, scheduler = make_keeper(steps), Scheduler("steps")
    request = scheduler.request()
    carried = keeper.carry_out(keeper._worker.begin_turn(request), request, "token")
    keeper.keep(request, carried, NOW)
    keeper.drop(scheduler.instance_id, carried)
    assert len(keeper) == 0


def test_a_late_answer_to_a_report_does_not_take_the_code_from_the_turn_that_went_on() -> None:
    keeper, scheduler = make_keeper(steps), Scheduler("steps")
    request = scheduler.request()
    first = keeper.carry_out(keeper._worker.begin_turn(request), request, "token")
    keeper.keep(request, first, NOW)
    scheduler.accept(first.answer.message)
    request = scheduler.request()
    second = keeper.carry_out(keeper._worker.begin_turn(request), request, "token")
    # The report was accepted, but its answer was lost, and it is given up now.
    keeper.drop(scheduler.instance_id, first)
    keeper.keep(request, second, NOW)
    scheduler.accept(second.answer.message)
    take_turn(keeper, scheduler)
    assert keeper.turns == {"replayed": 1, "kept": 2}


def test_an_answer_that_can_not_be_reported_fails_the_run_and_leaves_nothing() -> None:
    def too_large(_: Any) -> None:
        raise PayloadTooLargeError("11 MB")

    keeper, scheduler = make_keeper(steps), Scheduler("steps")
    take_turn(keeper, scheduler)
    request = scheduler.request()
    turn = keeper._worker.begin_turn(request)
    carried = keeper.carry_out(turn, request, "token", check=too_large)
    keeper.keep(request, carried, NOW)
    (action,) = carried.answer.message.actions
    assert action.completeOrchestration.failureDetails.errorType == "PayloadTooLargeError"
    assert [said.event.id for said in turn.outbox] == ["run-1/outcome"]  # type: ignore[union-attr]
    assert len(keeper) == 0


@pytest.mark.parametrize("replay", ["never", "always"])
def test_asks_that_are_open_when_an_answer_can_not_be_reported_are_closed(replay: str) -> None:
    def too_large(_: Any) -> None:
        raise PayloadTooLargeError("11 MB")

    def asks(context: Any, _: Any) -> Any:
        asked = context.wait_for_external_event("HumanApproval")
        yield when_any([asked, context.call_activity("step", input=1)])
        yield context.call_activity("step", input="x" * 11)

    keeper, scheduler = make_keeper(asks, replay=replay), Scheduler("asks")
    take_turn(keeper, scheduler)
    request = scheduler.request()
    turn = keeper._worker.begin_turn(request)
    carried = keeper.carry_out(turn, request, "token", check=too_large)
    keeper.keep(request, carried, NOW)
    assert [said.event.type for said in turn.outbox] == [  # type: ignore[union-attr]
        "towline.approval.resolved.v1",
        "towline.run.failed.v1",
    ]
    assert len(keeper) == 0


def first_turn(code: Any) -> tuple[Turn, pb.OrchestratorAction]:
    """The only turn of a run, and the action that ends it."""
    keeper, request = make_keeper(code), Scheduler(code.__name__).request()
    turn = keeper._worker.begin_turn(request)
    (action,) = keeper.carry_out(turn, request, "token").answer.message.actions
    return turn, action


class Unwritable:
    def to_json(self) -> Any:
        raise KeyError("nothing of the kind that JSON writers expect")


def test_an_output_that_breaks_its_writer_ends_the_run() -> None:
    def returns(_: Any, __: Any) -> Any:
        return Unwritable()

    def nests(_: Any, __: Any) -> Any:
        nested: list[Any] = []
        for _ in range(100_000):
            nested = [nested]
        return nested

    for code, error in ((returns, "KeyError"), (nests, "RecursionError")):
        turn, action = first_turn(code)
        assert action.completeOrchestration.orchestrationStatus == pb.ORCHESTRATION_STATUS_FAILED
        assert action.completeOrchestration.failureDetails.errorType.endswith(error)
        assert turn.outbox[-1].event.id == "run-1/outcome"  # type: ignore[union-attr]


class UnspeakableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no message")


@pytest.mark.parametrize(
    "error", [UnspeakableError(), ValueError("half a pair: \ud83d")], ids=["str", "surrogate"]
)
def test_an_error_that_can_not_be_described_fails_the_run(error: Exception) -> None:
    def breaks(_: Any, __: Any) -> Any:
        raise error

    turn, action = first_turn(breaks)
    failure = action.completeOrchestration.failureDetails
    assert type(error).__name__ in (failure.errorType, failure.innerFailure.errorType)
    assert turn.outbox[-1].event.type == "towline.run.failed.v1"  # type: ignore[union-attr]


@pytest.mark.parametrize("text", [str(PayloadReference("0" * 64, 9)), "{not JSON", "[" * 100_000])
def test_a_decision_that_can_not_be_read_does_not_keep_a_run_from_failing(text: str) -> None:
    keeper, scheduler = make_keeper(steps), Scheduler("steps")
    take_turn(keeper, scheduler)
    unreadable = ph.new_event_raised_event(DECISION_EVENT, text)
    decision = RaisedCommand(command_id="c-1", kind="decision", name="approval", approved=True)
    readable = ph.new_event_raised_event(DECISION_EVENT, decision.model_dump_json())
    scheduler.new += [unreadable, readable]
    request = scheduler.request()
    turn = keeper._worker.begin_turn(request)
    keeper.fail(turn, request, "token", PayloadMissingError("it has expired"))
    assert [said.event.id for said in turn.outbox] == [  # type: ignore[union-attr]
        "run-1/approval/approval/refused/c-1",
        "run-1/outcome",
    ]


@pytest.mark.parametrize("stop", [SystemExit(2), asyncio.CancelledError()], ids=["exit", "cancel"])
def test_code_that_is_no_generator_and_stops_its_host_has_failed(stop: BaseException) -> None:
    def stops(_: Any, __: Any) -> Any:
        raise stop

    turn, action = first_turn(stops)
    assert action.completeOrchestration.orchestrationStatus == pb.ORCHESTRATION_STATUS_FAILED
    assert turn.outbox[-1].event.type == "towline.run.failed.v1"  # type: ignore[union-attr]


@pytest.mark.parametrize("stop", [SystemExit(2), asyncio.CancelledError()], ids=["exit", "cancel"])
def test_code_that_stops_its_host_while_it_is_let_go_stops_nothing(stop: BaseException) -> None:
    def clings(context: Any, _: Any) -> Generator[Any, Any, None]:
        try:
            yield context.call_activity("step", input=1)
        finally:
            raise stop

    keeper, scheduler = make_keeper(clings), Scheduler("clings", native=True)
    take_turn(keeper, scheduler)
    keeper.expire(NOW + 1_000)
    assert len(keeper) == 0


def test_another_execution_of_the_instance_is_replayed() -> None:
    keeper, scheduler = make_keeper(steps), Scheduler("steps")
    take_turn(keeper, scheduler)
    scheduler.execution_id = "second"
    take_turn(keeper, scheduler)
    assert keeper.turns["stale"] == 1


def test_the_least_recently_used_is_let_go_when_there_are_too_many() -> None:
    keeper = make_keeper(steps, max_count=2)
    first, second, third = (Scheduler("steps", instance_id=name) for name in ("a", "b", "c"))
    take_turn(keeper, first)
    take_turn(keeper, second)
    take_turn(keeper, first)
    take_turn(keeper, third)
    assert len(keeper) == 2
    take_turn(keeper, first)
    assert keeper.turns == {"replayed": 3, "kept": 2}
    take_turn(keeper, second)
    assert keeper.turns == {"replayed": 4, "kept": 2}


def test_the_least_recently_used_is_let_go_when_their_histories_are_too_large() -> None:
    keeper = make_keeper(steps, max_bytes=50_000)
    first, second = (Scheduler("steps", instance_id=name) for name in ("a", "b"))
    small = Scheduler("steps", instance_id="c")
    take_turn(keeper, small)
    take_turn(keeper, first, result="x" * 30_000)
    take_turn(keeper, first)
    assert len(keeper) == 2
    take_turn(keeper, second, result="x" * 60_000)
    # However large, the latest is kept: else each of its turns would be a replay.
    take_turn(keeper, second)
    take_turn(keeper, second)
    assert len(keeper) == 1
    assert keeper.turns == {"replayed": 3, "kept": 3}
    # What is let go counts no more.
    keeper.close()
    take_turn(keeper, first)
    take_turn(keeper, small)
    assert len(keeper) == 2


def test_what_had_no_turn_for_long_is_let_go() -> None:
    keeper = make_keeper(steps, max_age_s=60.0)
    old, recent = Scheduler("steps", instance_id="old"), Scheduler("steps", instance_id="recent")
    take_turn(keeper, old, now=LONG_AGO)
    take_turn(keeper, recent, now=NOW)
    keeper.expire(NOW + 1)
    assert len(keeper) == 1
    take_turn(keeper, recent)
    assert keeper.turns == {"replayed": 2, "kept": 1}


@pytest.mark.parametrize("replay", ["always", "never"])
def test_code_that_is_let_go_cleans_up_and_says_nothing(replay: str) -> None:
    ended: list[str] = []

    def tidy(context: Any, _: Any) -> Generator[Any, Any, None]:
        try:
            yield context.call_activity("step")
        finally:
            ended.append("cleaned up")
            context.set_custom_status("must not be heard")

    keeper, scheduler = make_keeper(tidy, replay=replay), Scheduler("tidy")
    request = scheduler.request()
    turn = keeper._worker.begin_turn(request)
    keeper.keep(request, keeper.carry_out(turn, request, "token"), NOW)
    keeper.close()
    assert ended == ["cleaned up"]
    assert [said.event.id for said in turn.outbox] == ["run-1/started"]  # type: ignore[union-attr]


def test_the_first_turns_and_one_in_so_many_are_replayed() -> None:
    keeper, scheduler = make_keeper(steps, replay="sampled", replay_every=10), Scheduler("steps")
    for _ in range(1 + 40):
        take_turn(keeper, scheduler)
    # The very first, the first sixteen that could have gone on, and the 20th, 30th and 40th.
    assert keeper.turns == {"replayed": 1 + 16 + 3, "kept": 21}


def test_replay_finds_code_that_is_not_deterministic() -> None:
    calls: list[int] = []

    def fickle(context: Any, _: Any) -> Generator[Any, Any, None]:
        calls.append(1)
        yield context.call_activity("step" if len(calls) == 1 else "other")
        yield context.call_activity("step")

    scheduler = Scheduler("fickle")
    keeper = make_keeper(fickle, replay="always")
    take_turn(keeper, scheduler)
    request = scheduler.request()
    carried = keeper.carry_out(keeper._worker.begin_turn(request), request, "token")
    (action,) = carried.answer.message.actions
    assert action.completeOrchestration.failureDetails.errorType.endswith("NonDeterminismError")


def test_context_variables_of_the_code_last_over_its_turns() -> None:
    variable: ContextVar[str] = ContextVar("variable", default="outside")
    seen: list[str] = []

    def scoped(context: Any, _: Any) -> Generator[Any, Any, None]:
        token = variable.set("inside")
        yield context.call_activity("step")
        seen.append(variable.get())
        variable.reset(token)
        seen.append(variable.get())
        yield context.call_activity("step")

    keeper, scheduler = make_keeper(scoped), Scheduler("scoped")
    take_turn(keeper, scheduler)
    take_turn(keeper, scheduler)
    assert seen == ["inside", "outside"]
    assert variable.get() == "outside"
