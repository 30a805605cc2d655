"""The newsroom on a real stack: publish a request, approve, consume the result."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from durabletask.task import OrchestrationContext, Task

from towline.contracts import RunFailedError, TowlineClient
from towline.testing import (
    RecordedRun,
    ReplayError,
    approve_when_asked,
    assert_events,
    record,
    reject_when_asked,
    replay,
)
from towline.testing.stack import TestStack

HISTORIES = Path(__file__).parent / "histories"


async def test_an_approved_headline_is_printed(towline_client: TowlineClient) -> None:
    run = await towline_client.start("headline", "rain")
    await approve_when_asked(run, "EditorDecision", approver="ann")
    assert await run.result(timeout=30) == "Printed: RAIN!"
    await assert_events(
        run,
        [
            "run.started",
            ("run.progressed", {"status": {"draft": "RAIN!"}}),
            ("approval.requested", {"approval_id": "EditorDecision"}),
            ("approval.resolved", {"outcome": "approved", "approver": "ann"}),
            ("run.completed", {"output": "Printed: RAIN!"}),
        ],
    )


async def test_a_rejected_headline_is_spiked(towline_client: TowlineClient) -> None:
    run = await towline_client.start("headline", "snow")
    await reject_when_asked(run, feedback="again?")
    assert await run.result(timeout=30) == "Spiked: SNOW!"


async def test_after_three_days_it_is_too_late(
    towline_client: TowlineClient, skip_time: Callable[[timedelta], None]
) -> None:
    run = await towline_client.start("headline", "fog")
    async for event in run.events():
        if event.type == "towline.approval.requested.v1":
            break
    skip_time(timedelta(days=3))
    with pytest.raises(RunFailedError, match="nobody decided on 'FOG!' in time"):
        await run.result(timeout=30)


async def test_the_agent_alone(run_and_wait: Callable[..., Awaitable[Any]]) -> None:
    assert await run_and_wait("agent.Reporter", {"message": "sun"}) == {"text": "SUN!"}


@pytest.mark.parametrize("path", sorted(HISTORIES.glob("*.json")), ids=lambda path: path.stem)
def test_todays_code_replays_recorded_runs(path: Path, towline_app: str) -> None:
    replay(towline_app, RecordedRun.load(path), outputs=True)


async def test_a_run_of_today_is_recorded_and_code_that_would_break_it_is_found(
    towline_client: TowlineClient,
    towline_stack: TestStack,
    towline_app: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = await towline_client.start("headline", "hail")
    async for event in run.events():
        if event.type == "towline.approval.requested.v1":
            break
    record(towline_stack.scheduler, run.run_id).save(tmp_path / "waiting.json")
    waiting = RecordedRun.load(tmp_path / "waiting.json")

    replay(towline_app, waiting)
    monkeypatch.setattr("newsroom.headline.__code__", printed_unasked.__code__)
    with pytest.raises(ReplayError, match="headline does not replay"):
        replay(towline_app, waiting)


def printed_unasked(context: OrchestrationContext, topic: str) -> Generator[Task[Any], Any, str]:
    """The newsroom's orchestration as somebody might change it: neither agent nor editor."""
    return (yield context.call_activity("print_headline", input=topic))
