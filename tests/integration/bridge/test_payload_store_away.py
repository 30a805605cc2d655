"""While the payload store is away, what the bridge is seeing through waits for it: nothing is given up."""

from __future__ import annotations

import pytest
from pydantic import SecretStr
from tests.integration.bridge.conftest import REVIEW
from tests.integration.bridge.test_control import control, decide, working
from tests.integration.bridge.test_requests import started
from tests.waiting import eventually_async

from towline.contracts.settings import PayloadSettings

__all__ = ["working"]  # a fixture

pytestmark = pytest.mark.slow
LARGE = {"topic": "x" * 400_000}


@pytest.fixture
async def store(register, start_bridge, caplog, tmp_path):
    """The folder of payloads of a bridge that remembers none of them."""
    caplog.set_level("INFO", "towline.bridge")
    folder = tmp_path / "payloads"
    await register(REVIEW)
    payloads = PayloadSettings(url=SecretStr(folder.as_uri()), cache_bytes=0)
    await start_bridge(payloads, cancel_grace_s=2.0, sweep_every_s=0.5)
    return folder


async def test_outcomes_of_runs_with_large_inputs_are_told_once_the_store_is_back(store, wire, hub, caplog):
    for run_id in ("swept", "cancelled"):
        await wire.request(run_id, input=LARGE)
        await started(hub, run_id)
    await control(wire, "cancelled", "cancel")
    await eventually_async(lambda: "cancel_raised" in caplog.text)
    aside = store.rename(store.with_name("aside"))
    await hub.terminate_orchestration("swept")
    await hub.wait_for_orchestration_completion("cancelled", timeout=20)
    await wire.request("plain")
    await started(hub, "plain")
    await hub.terminate_orchestration("plain")
    await wire.until(lambda seen: seen.id == "plain/outcome")
    assert [seen.id for seen in wire.seen] == ["plain/outcome"]
    aside.rename(store)
    await wire.until(lambda seen: seen.id == "swept/outcome")
    told = await wire.until(lambda seen: seen.id == "cancelled/outcome")
    assert (told.type, told.data["reason"]) == ("run.cancelled", "test")
    assert not [seen for seen in wire.seen if seen.topic.endswith("dead-letters")]


async def test_a_decision_for_a_run_with_a_large_input_is_watched_until_the_store_is_back(
    store, wire, hub, working
):
    await wire.request("r-1", input=LARGE)
    await started(hub, "r-1")
    with working():
        # The input comes into the history with the run's turn, which fails: this worker has no store.
        await hub.wait_for_orchestration_completion("r-1", timeout=20)
    aside = store.rename(store.with_name("aside"))
    decision = await decide(wire, "r-1")
    # The grace of this one is over long after the first look at that one's history.
    other = await decide(wire, "r-2")
    await wire.until(lambda seen: seen.id.endswith(other))
    assert [seen for seen in wire.seen if not seen.id.endswith(other)] == []
    aside.rename(store)
    refused = await wire.until(lambda seen: seen.id.endswith(decision), within_s=30)
    assert (refused.type, refused.data["reason"]) == ("approval.refused", "run_finished")
    assert not [seen for seen in wire.seen if seen.topic.endswith("dead-letters")]
