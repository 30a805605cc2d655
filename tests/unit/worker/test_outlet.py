"""What turns say goes out in order, however long it takes, unless nobody wants it any more."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import pytest

from towline.contracts.cloudevents import encode
from towline.contracts.errors import EncodeError, PublishError
from towline.contracts.events import (
    ApprovalRequested,
    ApprovalResolved,
    ErrorInfo,
    Event,
    EventData,
    RunCancelled,
    RunCompleted,
    RunFailed,
    RunProgressed,
)
from towline.worker.errors import TurnAbandonedError
from towline.worker.outlet import Outlet, printable
from towline.worker.turn import Publish, RaiseOn, Turn

NOW = datetime(2026, 11, 24, tzinfo=UTC)


def event(data: EventData, event_id: str = "e") -> Event:
    return Event(id=event_id, source="test", data=data)


def progressed(status: Any, event_id: str = "e") -> Event:
    return event(RunProgressed(run_id="r", status=status), event_id)


def completed(output: Any = None, event_id: str = "r/outcome") -> Event:
    data = RunCompleted(run_id="r", run_type="t", output=output, started_at=NOW, finished_at=NOW)
    return event(data, event_id)


class Kafka:
    """A publisher that can be away, or refuse what is too large."""

    def __init__(self) -> None:
        self.sent: list[str] = []
        self.events: list[Event] = []
        self.types: list[str] = []
        self.away = 0
        self.limit = 1_000_000
        self.tried = asyncio.Event()

    async def send_many(self, events: Sequence[Event]) -> None:
        self.tried.set()
        if self.away > 0:
            self.away -= 1
            raise PublishError("away", event_id=events[0].id)
        for one in events:
            encode(one)
            if len(one.data.model_dump_json()) > self.limit:
                raise EncodeError(f"{one.id} is too large")
        self.events += events
        self.sent += [one.id for one in events]
        self.types += [one.type for one in events]


Deliver = Callable[[Outlet, Turn, list[str]], Awaitable[None]]


async def on_the_loop(outlet: Outlet, turn: Turn, raised: list[str]) -> None:
    async def raise_event(said: RaiseOn) -> None:
        raised.append(said.name)

    await outlet.deliver(turn, raise_event)


async def from_a_thread(outlet: Outlet, turn: Turn, raised: list[str]) -> None:
    with ThreadPoolExecutor(1) as thread:
        send = asyncio.get_running_loop().run_in_executor(
            thread, outlet.send, turn, lambda said: raised.append(said.name)
        )
        await send


both = pytest.mark.parametrize("deliver", [on_the_loop, from_a_thread])


@both
async def test_everything_goes_out_in_order_and_the_outcome_last(deliver: Deliver) -> None:
    kafka = Kafka()
    outlet = Outlet(kafka, asyncio.get_running_loop())
    raised: list[str] = []
    turn = Turn("r", 0)
    turn.outbox += [
        Publish(progressed(1, "1")),
        RaiseOn("other", "towline.ask", {}),
        Publish(completed()),
        Publish(progressed(2, "2")),
    ]
    await deliver(outlet, turn, raised)
    assert kafka.sent == ["1", "2", "r/outcome"]
    assert raised == ["towline.ask"]


@both
async def test_a_turn_waits_for_kafka_and_is_not_failed_for_it(
    deliver: Deliver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("towline.worker.outlet._BACKOFF_S", (0.0,))
    kafka = Kafka()
    kafka.away = 5
    outlet = Outlet(kafka, asyncio.get_running_loop())
    turn = Turn("r", 0, [Publish(progressed(1))])
    await deliver(outlet, turn, [])
    assert kafka.sent == ["e"]
    assert not outlet.is_stuck


@both
@pytest.mark.parametrize("give_up", ["replace", "close"])
async def test_a_turn_that_waits_gives_up_when_it_is_replaced_or_the_host_stops(
    deliver: Deliver, give_up: str
) -> None:
    kafka = Kafka()
    kafka.away = 1_000
    outlet = Outlet(kafka, asyncio.get_running_loop())
    turn = Turn("r", 0, [Publish(progressed(1))])
    waiting = asyncio.ensure_future(deliver(outlet, turn, []))
    try:
        async with asyncio.timeout(5):
            await kafka.tried.wait()
            while outlet.waiting_count == 0:  # noqa: ASYNC110 - another thread notes it
                await asyncio.sleep(0)
        outlet.replace("another")
        assert outlet.waiting_count == 1
        if give_up == "replace":
            outlet.replace("r")
        else:
            outlet.close()
        with pytest.raises(TurnAbandonedError):
            await asyncio.wait_for(waiting, 5)
        assert outlet.waiting_count == 0
    finally:
        outlet.close()


@both
async def test_a_closed_outlet_takes_nothing(deliver: Deliver) -> None:
    outlet = Outlet(Kafka(), asyncio.get_running_loop())
    outlet.close()
    with pytest.raises(TurnAbandonedError):
        await deliver(outlet, Turn("r", 0, [Publish(progressed(1))]), [])
    await deliver(outlet, Turn("r", 0), [])


async def test_an_output_that_is_too_large_fails_the_run_and_what_was_said_with_it_goes_out() -> None:
    kafka = Kafka()
    kafka.limit = 2_000
    outlet = Outlet(kafka, asyncio.get_running_loop())
    turn = Turn("r", 0, [Publish(progressed(1, "1")), Publish(completed("x" * 3_000))])
    await on_the_loop(outlet, turn, [])
    assert kafka.sent == ["1", "r/outcome"]
    assert kafka.types[-1] == "towline.run.failed.v1"


async def test_a_failure_whose_message_is_too_large_is_told_all_the_same() -> None:
    kafka = Kafka()
    kafka.limit = 20_000
    outlet = Outlet(kafka, asyncio.get_running_loop())
    error = ErrorInfo(type="ValidationError", message="é" * 1_500_000)
    failed = RunFailed(run_id="r", run_type="t", error=error, finished_at=NOW)
    await on_the_loop(outlet, Turn("r", 0, [Publish(event(failed, "r/outcome"))]), [])
    assert kafka.sent == ["r/outcome"]


HALF_A_PAIR = "cut \ud83d"
MENDED = "cut \ufffd"


@pytest.mark.parametrize(
    ("said", "written"),
    [
        (
            ApprovalRequested(
                run_id="r", approval_id="a", title=HALF_A_PAIR, details=[HALF_A_PAIR], approvers=[HALF_A_PAIR]
            ),
            ApprovalRequested(
                run_id="r", approval_id="a", title=MENDED, details=[MENDED], approvers=[MENDED]
            ),
        ),
        (RunProgressed(run_id="r", status={HALF_A_PAIR: 1}), RunProgressed(run_id="r", status={MENDED: 1})),
        (
            RunCompleted(
                run_id="r", run_type="t", output={"a": HALF_A_PAIR}, started_at=NOW, finished_at=NOW
            ),
            RunCompleted(run_id="r", run_type="t", output={"a": MENDED}, started_at=NOW, finished_at=NOW),
        ),
    ],
)
async def test_half_of_a_surrogate_pair_costs_one_character_and_not_the_event(
    said: EventData, written: EventData
) -> None:
    kafka = Kafka()
    outlet = Outlet(kafka, asyncio.get_running_loop())
    await on_the_loop(outlet, Turn("r", 0, [Publish(event(said))]), [])
    assert [sent.data for sent in kafka.events] == [written]


async def test_an_ask_whose_title_is_too_large_is_announced_all_the_same() -> None:
    kafka = Kafka()
    kafka.limit = 20_000
    outlet = Outlet(kafka, asyncio.get_running_loop())
    asked = ApprovalRequested(
        run_id="r", approval_id="a", title="Publish? " + "é" * 1_500_000, details={"a": 1}
    )
    await on_the_loop(outlet, Turn("r", 0, [Publish(event(asked, "r/approval/a/requested"))]), [])
    assert kafka.sent == ["r/approval/a/requested"]


@pytest.mark.parametrize(
    ("original", "expected"),
    [
        (RunProgressed(run_id="r", status="x"), RunProgressed(run_id="r", status={"too_large": True})),
        (
            ApprovalRequested(run_id="r", approval_id="a", title="t", details={"a": 1}),
            ApprovalRequested(run_id="r", approval_id="a", title="t"),
        ),
        (
            RunFailed(
                run_id="r",
                run_type="t",
                error=ErrorInfo(type="E", message="m" * 20_000, details=[1]),
                finished_at=NOW,
            ),
            RunFailed(
                run_id="r", run_type="t", error=ErrorInfo(type="E", message="m" * 10_000), finished_at=NOW
            ),
        ),
        (
            RunCancelled(run_id="r", reason="r" * 20_000, finished_at=NOW),
            RunCancelled(run_id="r", reason="r" * 10_000, finished_at=NOW),
        ),
        (
            ApprovalResolved(run_id="r", approval_id="a", outcome="rejected", feedback="f" * 20_000),
            ApprovalResolved(run_id="r", approval_id="a", outcome="rejected", feedback="f" * 10_000),
        ),
    ],
)
def test_something_smaller_is_said_in_place_of_what_is_too_large(
    original: EventData, expected: EventData
) -> None:
    replaced = printable(event(original), "too large")
    assert replaced is not None
    assert replaced.data == expected
    assert replaced.id == "e"
    assert printable(replaced, "still too large") is None
