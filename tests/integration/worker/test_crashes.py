"""The worker dies, is stopped, or loses Kafka, at the moments that matter."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.integration.wire.raw import Wire
from tests.waiting import eventually

from towline.dev.stack import Stack

StackFactory = Callable[..., Stack]
APPS = "tests.integration.worker.apps"


async def keep_starting(worker: Any, stop: asyncio.Event) -> None:
    while not stop.is_set():
        if not worker.is_running:
            await asyncio.to_thread(worker.spawn)
        await asyncio.sleep(0.05)


@pytest.mark.parametrize("dispatcher", ["async", "sdk"])
async def test_a_crash_before_or_after_each_publish_repeats_the_same_events(
    stack: StackFactory, markers: Path, dispatcher: str
) -> None:
    started = await asyncio.to_thread(
        stack,
        f"{APPS}:crashing",
        settings={
            "WORKER_TEST_MARKERS": str(markers),
            "TOWLINE_WORKER_DISPATCHER": dispatcher,
            "TOWLINE_WORKER_REPLAY": "never",
        },
        roles=("bridge", "worker"),
    )
    async with Wire(started.kafka.bootstrap, started.kafka.topic_prefix) as wire:
        stop = asyncio.Event()
        starter = asyncio.create_task(keep_starting(started["worker"], stop))
        try:
            run_id = await wire.start("payment", {"amount": 5})
            # Decided between the crash and the repeat, the decision would be taken in the same turn.
            await wire.until(
                lambda: len(wire.of(run_id, "approval.requested")) >= 2, "it asks again", timeout_s=60
            )
            decision = await wire.decide(run_id, "approval", True, approver="ann")
            outcome = await wire.outcome(run_id, timeout_s=90)
            # The last crash comes after the outcome was published: it must be published again.
            await wire.until(lambda: len(wire.outcomes(run_id)) >= 2, "the repeat", timeout_s=60)
        finally:
            stop.set()
            await starter
    deaths = await asyncio.to_thread(lambda: sorted(path.name for path in markers.iterdir()))
    assert len([name for name in deaths if name.startswith("before")]) >= 3
    assert len([name for name in deaths if name.startswith("after")]) >= 3
    assert outcome.data["output"] == "paid 5"
    assert {seen.id for seen in wire.outcomes(run_id)} == {f"{run_id}/outcome"}
    assert {seen.data["output"] for seen in wire.outcomes(run_id)} == {"paid 5"}
    assert {seen.id for seen in wire.of(run_id)} == {
        f"{run_id}/started",
        f"{run_id}/progress/1",
        f"{run_id}/approval/approval/requested",
        f"{run_id}/approval/approval/resolved/{decision}",
        f"{run_id}/outcome",
    }


async def test_a_beginning_that_died_with_its_worker_is_told_by_the_next(
    stack: StackFactory, markers: Path
) -> None:
    """The first turn was reported, and what it has called runs; that the run has started nobody has heard."""
    started = await asyncio.to_thread(
        stack,
        f"{APPS}:crashing",
        settings={"WORKER_TEST_MARKERS": str(markers)},
        roles=("bridge", "worker"),
    )
    worker = started["worker"]
    async with Wire(started.kafka.bootstrap, started.kafka.topic_prefix) as wire:
        run_id = await wire.start("charge", {"amount": 5})
        await asyncio.to_thread(eventually, lambda: not worker.is_running, "it dies at work")
        assert wire.of(run_id) == []
        stop = asyncio.Event()
        starter = asyncio.create_task(keep_starting(worker, stop))
        try:
            outcome = await wire.outcome(run_id, timeout_s=90)
            await wire.until(lambda: len(wire.outcomes(run_id)) >= 2, "the repeat", timeout_s=60)
        finally:
            stop.set()
            await starter
    deaths = await asyncio.to_thread(
        lambda: sorted(path.name.partition("-")[0] for path in markers.iterdir())
    )
    assert deaths == ["after", "before", "charging"]
    assert outcome.data["output"] == "charged 5"
    beginnings = wire.of(run_id, "run.started")
    assert {seen.id for seen in beginnings} == {f"{run_id}/started"}
    assert len({seen.headers["ce_time"] for seen in beginnings}) == 1
    assert wire.of(run_id)[0].type == "run.started"


async def test_turns_wait_while_kafka_is_away_and_no_run_fails_for_it(stack: StackFactory) -> None:
    started = await asyncio.to_thread(
        stack, f"{APPS}:setup_worker", own=("kafka",), roles=("bridge", "worker")
    )
    worker, kafka = started["worker"], started["kafka"]
    async with Wire(started.kafka.bootstrap, started.kafka.topic_prefix) as wire:
        run_ids = [await wire.start("hangs", 1) for _ in range(5)]
        await wire.until(lambda: all(wire.of(run_id, "run.started") for run_id in run_ids), "they run")
        await asyncio.to_thread(kafka.kill)
        # The activities end meanwhile, and the turns that follow can't publish.
        await asyncio.to_thread(eventually, lambda: not worker.probe(), "the worker says that it waits")
        assert worker.is_running
        await asyncio.to_thread(kafka.start)
        await wire.all_outcomes(run_ids, timeout_s=60)
        assert {wire.outcomes(run_id)[0].type for run_id in run_ids} == {"run.completed"}
        await asyncio.to_thread(eventually, worker.probe, "the worker is ready again")


async def test_sigterm_ends_the_worker_within_its_bound_though_an_activity_hangs(
    stack: StackFactory,
) -> None:
    started = await asyncio.to_thread(
        stack,
        f"{APPS}:setup_worker",
        settings={"TOWLINE_WORKER_STOP_TIMEOUT_S": "2"},
        roles=("bridge", "worker"),
    )
    async with Wire(started.kafka.bootstrap, started.kafka.topic_prefix) as wire:
        run_id = await wire.start("hangs", 30)
        await wire.until(lambda: wire.of(run_id, "run.started"), "it runs")
        worker = started["worker"]
        began = time.monotonic()
        os.kill(worker.pid, signal.SIGTERM)
        await asyncio.to_thread(eventually, lambda: not worker.is_running, "the worker ends")
        assert time.monotonic() - began < 6
        assert worker.exit_status() == 0
