"""kill -9 of one part in the middle of thirty runs: every run still has its one outcome.

What this proves, by the ids alone: no run is lost, none has two outcomes, none a wrong one. The chaos test
does the same for longer and with more faults.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator

import pytest
from tests.integration.wire.conftest import plan
from tests.integration.wire.raw import Seen, Wire

from towline.dev.stack import Stack

STEPS = 10


@pytest.fixture(scope="module")
def own_stack(kafka: str, valkey: str, tmp_path_factory: pytest.TempPathFactory) -> Generator[Stack]:
    """A stack with a scheduler of its own, to be killed."""
    given = {"TOWLINE_KAFKA_BOOTSTRAP": kafka, "TOWLINE_REDIS_URL": valkey}
    with Stack(plan(tmp_path_factory.mktemp("kill"), given)).running() as stack:
        yield stack


def outcomes_by_id(wire: Wire, run_ids: list[str]) -> dict[str, set[str]]:
    """Of each run: the ids of its outcomes (a repeat after a crash carries the same one)."""
    return {run_id: {seen.id for seen in wire.outcomes(run_id)} for run_id in run_ids}


def first(wire: Wire, run_id: str) -> Seen:
    return wire.outcomes(run_id)[0]


@pytest.mark.parametrize("victim", ["worker", "bridge", "scheduler"])
async def test_thirty_runs_survive_the_kill_of_a_part(own_stack: Stack, victim: str) -> None:
    kafka = own_stack.kafka
    async with Wire(kafka.bootstrap, kafka.topic_prefix) as wire:
        counting = [await wire.start("steps", STEPS) for _ in range(15)]
        slow = [await wire.start("ask_slowly", "x") for _ in range(10)]
        articles = [await wire.start("write_article", {"topic": "tides"}) for _ in range(5)]
        run_ids = [*counting, *slow, *articles]
        await wire.until(
            lambda: sum(seen.type == "run.started" for seen in wire.seen if seen.topic == "events") >= 10,
            "ten runs have started",
        )

        await asyncio.to_thread(own_stack[victim].kill)
        decisions = [await wire.decide(run_id, "HumanApproval", True) for run_id in articles]
        await asyncio.to_thread(own_stack[victim].start)

        await wire.all_outcomes(run_ids, timeout_s=60)
        for decision in decisions:
            await wire.answer(decision)
        await wire.settle()

        assert outcomes_by_id(wire, run_ids) == {run_id: {f"{run_id}/outcome"} for run_id in run_ids}
        assert {first(wire, run_id).type for run_id in run_ids} == {"run.completed"}
        assert {first(wire, run_id).data["output"] for run_id in counting} == {STEPS * (STEPS - 1)}
        assert {first(wire, run_id).data["output"] for run_id in slow} == {"At last."}
        assert {len(wire.answers(decision)) for decision in decisions} == {1}
