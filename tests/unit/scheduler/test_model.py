"""Random programs, run by the SDK's own executor on the engine: whatever comes in between, they end right."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from durabletask import task
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.scheduler.worlds import Bench, history

from towline.scheduler.engine import control, turns
from towline.scheduler.engine.model import COMPLETED, TERMINATED

STEPS = ("activity", "fan", "timer", "event", "child", "send", "generation")


def double(_: task.ActivityContext, value: int) -> int:
    return 2 * value


def child(ctx: task.OrchestrationContext, value: int) -> Any:
    return (yield ctx.call_activity(double, input=value))


def program(ctx: task.OrchestrationContext, state: dict[str, Any]) -> Any:
    """Does the steps of its input and adds up what they give."""
    steps, total = state["steps"], state["total"]
    for index, step in enumerate(steps):
        if step == "activity":
            total += yield ctx.call_activity(double, input=index)
        elif step == "fan":
            total += sum((yield task.when_all([ctx.call_activity(double, input=n) for n in range(3)])))
        elif step == "timer":
            yield ctx.create_timer(timedelta(seconds=index + 1))
            total += 1
        elif step == "event":
            total += yield ctx.wait_for_external_event("Go")
        elif step == "child":
            total += yield ctx.call_sub_orchestrator(child, input=index)
        elif step == "send":
            ctx.send_event(ctx.instance_id, "unheard", data=1)
        else:
            ctx.continue_as_new({"steps": steps[index + 1 :], "total": total}, save_events=True)
            return None
    return total


def expected(steps: list[str]) -> int:
    total, offset = 0, 0
    for index, step in enumerate(steps):
        at = index - offset
        if step == "generation":
            offset = index + 1
        total += {"activity": 2 * at, "fan": 6, "timer": 1, "event": 5, "child": 2 * at}.get(step, 0)
    return total


def bench_for(steps: list[str]) -> Bench:
    bench = Bench()
    bench.registry.add_orchestrator(program)
    bench.registry.add_orchestrator(child)
    bench.start("program", f'{{"steps": {str(steps).replace(chr(39), chr(34))}, "total": 0}}')
    for _ in range(steps.count("event")):
        control.raise_event(bench.changes, bench.world, 1, "run", "gO", "5", bench.now)
    bench.settle()
    return bench


def one_move(bench: Bench, data: st.DataObject) -> bool:
    """Do one of the things that can happen. Answers whether there was any."""
    moves: list[tuple[str, Any]] = [("turn", one) for one in bench.world.instances.values() if one.runnable]
    moves += [("activity", one) for one in bench.dispatched]
    moves += [("timer", None)] if bench.timers else []
    if not moves:
        return False
    kind, subject = data.draw(st.sampled_from(moves))
    if kind == "turn":
        if data.draw(st.booleans()):
            bench.begin(subject)  # taken by a worker that dies
            turns.lost(bench.changes, bench.world, subject, bench.now, counts=False)
        bench.execute(subject)
    elif kind == "activity":
        bench.dispatched.remove(subject)
        if not subject.done:
            bench.finish_activity(subject, str(2 * int(_input(subject.request))))
    else:
        bench.now = max(bench.now, min(timer.fire_at for timer in bench.timers))
        bench.fire_due()
    return True


def _input(request: bytes) -> str:
    from durabletask.internal import orchestrator_service_pb2 as pb

    return pb.ActivityRequest.FromString(request).input.value


@settings(max_examples=60, deadline=None)
@given(steps=st.lists(st.sampled_from(STEPS), max_size=8), data=st.data())
def test_a_random_program_ends_with_its_sum_in_any_order_of_what_happens(
    steps: list[str], data: st.DataObject
) -> None:
    bench = bench_for(steps)

    for _ in range(500):
        if not one_move(bench, data):
            break

    run = bench.world.instances["run"]
    assert run.status == COMPLETED, run.failure
    assert run.output == str(expected(steps))
    assert not bench.world.open
    assert not run.inbox
    assert_history_is_sound(bench)


@settings(max_examples=40, deadline=None)
@given(
    steps=st.lists(st.sampled_from(STEPS), min_size=1, max_size=6), data=st.data(), after=st.integers(0, 20)
)
def test_terminate_at_any_moment_leaves_nothing_running(
    steps: list[str], data: st.DataObject, after: int
) -> None:
    bench = bench_for(steps)
    for _ in range(after):
        if not one_move(bench, data):
            break

    ended = control.terminate(bench.changes, bench.world, 1, "run", '"why"', recursive=True, now=bench.now)
    bench.settle()

    run = bench.world.instances["run"]
    assert run.terminal
    assert (run.status == TERMINATED) == ended
    assert not bench.world.open
    assert not [one for one in bench.world.instances.values() if one.runnable]
    assert (
        control.terminate(bench.changes, bench.world, 1, "run", None, recursive=True, now=bench.now) is False
    )


def assert_history_is_sound(bench: Bench) -> None:
    for instance in bench.world.instances.values():
        events = history(instance)
        started = [event for event in events if event.HasField("executionStarted")]
        assert len(started) == 1
        assert events[1] == started[0]
        assert len(events) == instance.history_events
        times = [
            event.timestamp.ToMicroseconds() for event in events if event.HasField("orchestratorStarted")
        ]
        assert times == sorted(set(times))
        confirmed = [event.eventId for event in events if event.eventId >= 0]
        assert len(confirmed) == len(set(confirmed))
        assert all(event.timestamp.seconds for event in events)
