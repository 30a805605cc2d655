"""The newsroom on a real stack: publish a request, approve, consume the result."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from towline.contracts import RunFailedError, TowlineClient
from towline.testing import RecordedRun, approve_when_asked, assert_events, reject_when_asked, replay

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
