"""Control commands and decisions. Runs are orchestrations of a stock worker, or nobody works on them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Generator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import pytest
from aiokafka import AIOKafkaConsumer
from durabletask.azuremanaged.client import AsyncDurableTaskSchedulerClient
from durabletask.azuremanaged.worker import DurableTaskSchedulerWorker
from durabletask.client import OrchestrationStatus
from tests.integration.bridge.test_requests import started
from tests.integration.bridge.wire import Wire

from towline.bridge import decisions
from towline.bridge.errors import SchedulerRefusedError
from towline.bridge.scheduler import Scheduler
from towline.contracts.durable import CANCEL_EVENT, DECISION_EVENT, unwrap_input, wrap_input
from towline.contracts.events import RunTypeInfo


class RunCancelledError(Exception):
    """As the worker host ends a cancelled run."""


def review(context, _input):
    """Waits for a cancel, for ever."""
    yield context.wait_for_external_event(CANCEL_EVENT)
    raise RunCancelledError


def quick(_context, run_input):
    """Ends at once."""
    return run_input["input"]


def three_events(context, _input):
    """Collects three decisions."""
    names = []
    for _ in range(3):
        command = yield context.wait_for_external_event(DECISION_EVENT)
        names.append(command["name"])
    return names


def two_generations(context, run_input):
    """Takes a decision, then goes on as a new generation that knows its id, as the host's book does."""
    envelope, _ = unwrap_input(run_input)
    if envelope.carried is None:
        command = yield context.wait_for_external_event(DECISION_EVENT)
        known = envelope.model_copy(update={"carried": {"seen": [command["command_id"]]}})
        context.continue_as_new(wrap_input(known, None))


@pytest.fixture
def working(scheduler_settings):
    """A stock worker for the block."""

    @contextmanager
    def work() -> Generator[None]:
        worker = DurableTaskSchedulerWorker(
            host_address=scheduler_settings.address,
            taskhub=scheduler_settings.taskhub,
            token_credential=None,
            secure_channel=False,
        )
        for orchestrator in (review, quick, three_events, two_generations):
            worker.add_orchestrator(orchestrator)
        worker.start()
        try:
            yield
        finally:
            worker.stop()

    return work


@pytest.fixture
async def short(register, start_bridge, wire) -> Wire:
    """A bridge that terminates half a second after a cancel and gives up on unknown runs after one."""
    await register(*(RunTypeInfo(name=name) for name in ("review", "quick", "three_events")))
    await start_bridge(cancel_grace_s=0.5, unknown_run_grace_s=1.0, sweep_every_s=0.5)
    return wire


async def ended(hub: AsyncDurableTaskSchedulerClient, run_id: str):
    await started(hub, run_id)
    return await hub.wait_for_orchestration_completion(run_id, timeout=20)


async def control(wire: Wire, run_id: str, action: str) -> str:
    return await wire.event("runs", "run.control", {"run_id": run_id, "action": action, "reason": "test"})


async def decide(wire: Wire, run_id: str, approval_id: str = "a-1", **more) -> str:
    data = {"run_id": run_id, "approval_id": approval_id, "approved": True} | more
    return await wire.event("approvals", "approval.decided", data)


# -- control -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("action", ["cancel", "suspend", "resume"])
async def test_a_control_command_for_no_run_is_refused_after_the_grace(short, action):
    command = await control(short, "nobody", action)
    answer = await short.until(lambda seen: seen.id.endswith(command))
    assert answer.type == "control.refused"
    assert answer.data == {"run_id": "nobody", "action": action, "reason": "unknown_run"}


async def test_control_of_a_finished_run_is_refused(short, hub, working):
    with working():
        await short.request("r-1", run_type="quick")
        await ended(hub, "r-1")
    for action in ("cancel", "suspend", "resume"):
        command = await control(short, "r-1", action)
        answer = await short.until(lambda seen, command=command: seen.id.endswith(command))
        assert answer.data["reason"] == "already_finished"
    assert (await ended(hub, "r-1")).runtime_status is OrchestrationStatus.COMPLETED


async def test_suspend_and_resume_are_told_by_progress(short, hub):
    await short.request("r-1")
    suspend = await control(short, "r-1", "suspend")
    answer = await short.until(lambda seen: seen.id.endswith(suspend))
    assert (answer.type, answer.data["status"]) == ("run.progressed", {"suspended": True, "reason": "test"})
    assert (await hub.get_orchestration_state("r-1")).runtime_status is OrchestrationStatus.SUSPENDED
    resume = await control(short, "r-1", "resume")
    answer = await short.until(lambda seen: seen.id.endswith(resume))
    assert answer.data["status"]["suspended"] is False


async def test_a_cancel_with_no_worker_terminates_after_the_grace(short, hub):
    await short.request("r-1")
    await control(short, "r-1", "cancel")
    outcome = await short.until(lambda seen: seen.id == "r-1/outcome")
    assert outcome.type == "run.cancelled"
    assert (outcome.data["run_type"], outcome.data["reason"]) == ("review", "test")
    assert (await ended(hub, "r-1")).runtime_status is OrchestrationStatus.TERMINATED
    await short.request("r-2")
    await started(hub, "r-2")
    await hub.terminate_orchestration("r-2")
    await short.until(lambda seen: seen.id == "r-2/outcome")
    assert len(short.of("r-1")) == 1, "the sweeper does not say it again"


@pytest.mark.parametrize(
    ("purged", "reason"), [(False, "already_finished"), (True, "unknown_run")], ids=["ended", "purged"]
)
async def test_a_cancel_is_answered_though_its_run_ends_the_moment_that_it_is_terminated(
    short, hub, working, monkeypatch, purged, reason
):
    terminate = Scheduler.terminate

    async def too_late(scheduler: Scheduler, run_id: str, output: object) -> None:
        with working():
            await ended(hub, run_id)
        if purged:
            await hub.purge_orchestration(run_id)
            await terminate(scheduler, run_id, output)
        # Ours takes it for a run that has ended too; a scheduler need not.
        raise SchedulerRefusedError("has ended")

    monkeypatch.setattr(Scheduler, "terminate", too_late)
    await short.request("r-1", run_type="quick")
    command = await control(short, "r-1", "cancel")
    answer = await short.until(lambda seen: seen.id.endswith(command))
    assert (answer.type, answer.data["reason"]) == ("control.refused", reason)


async def test_a_cancel_of_a_run_that_starts_later_needs_no_worker_and_no_grace(
    register, start_bridge, wire, hub
):
    await register()
    await start_bridge(cancel_grace_s=1000)
    await wire.request("r-1", start_at=(datetime.now(UTC) + timedelta(hours=1)).isoformat())
    await control(wire, "r-1", "cancel")
    outcome = await wire.until(lambda seen: seen.id == "r-1/outcome")
    assert outcome.type == "run.cancelled"


async def test_a_cancel_that_the_run_takes_is_answered_by_its_worker_alone(
    register, start_bridge, wire, hub, working
):
    await register()
    await start_bridge()
    with working():
        await wire.request("r-1")
        first, second = await control(wire, "r-1", "cancel"), await control(wire, "r-1", "cancel")
        state = await ended(hub, "r-1")
        assert state.runtime_status is OrchestrationStatus.FAILED
        late = await control(wire, "r-1", "cancel")
        await wire.until(lambda seen: seen.id.endswith(late))
    answers = [seen.id.rpartition("/")[2] for seen in wire.of("r-1")]
    assert answers == [late], f"{first} and {second} are answered by the worker's outcome"


async def test_a_suspended_run_can_be_cancelled(register, start_bridge, wire, hub, working):
    await register()
    await start_bridge()
    with working():
        await wire.request("r-1")
        command = await control(wire, "r-1", "suspend")
        await wire.until(lambda seen: seen.id.endswith(command))
        await control(wire, "r-1", "cancel")
        state = await ended(hub, "r-1")
        assert state.failure_details.error_type.endswith("RunCancelledError")


async def test_a_run_terminated_by_another_hand_gets_its_outcome_from_the_sweeper(short, hub):
    await short.request("r-1")
    await started(hub, "r-1")
    await hub.terminate_orchestration("r-1", output="maintenance")
    outcome = await short.until(lambda seen: seen.id == "r-1/outcome")
    assert (outcome.type, outcome.data["reason"]) == ("run.cancelled", "maintenance")


async def test_an_orchestration_that_towline_did_not_start_gets_no_outcome(short, hub):
    await hub.schedule_new_orchestration("review", instance_id="foreign")
    await hub.terminate_orchestration("foreign")
    await short.request("r-1")
    await started(hub, "r-1")
    await hub.terminate_orchestration("r-1")
    await short.until(lambda seen: seen.id == "r-1/outcome")
    assert short.of("foreign") == []


async def test_an_orchestration_that_towline_did_not_start_is_out_of_reach(short, hub):
    await hub.schedule_new_orchestration("review", instance_id="foreign")
    command = await control(short, "foreign", "cancel")
    answer = await short.until(lambda seen: seen.id.endswith(command))
    assert answer.data["reason"] == "unknown_run"
    assert (await hub.get_orchestration_state("foreign")).runtime_status is OrchestrationStatus.PENDING


# -- decisions and raised events -----------------------------------------------------------------------


async def test_a_decision_for_no_run_is_refused_after_the_grace(short):
    command = await decide(short, "nobody")
    answer = await short.until(lambda seen: seen.id.endswith(command))
    assert answer.type == "approval.refused"
    assert answer.data == {"run_id": "nobody", "approval_id": "a-1", "reason": "unknown_run"}


async def test_an_event_raised_for_no_run_is_refused_by_its_name(short):
    data = {"run_id": "nobody", "name": "Payment"}
    command = await short.event("approvals", "event.raised", data)
    answer = await short.until(lambda seen: seen.id.endswith(command))
    assert answer.data == {"run_id": "nobody", "approval_id": "Payment", "reason": "unknown_run"}


async def test_a_decision_before_its_run_waits_for_it(register, start_bridge, wire, hub):
    await register()
    await start_bridge(unknown_run_grace_s=20.0)
    await decide(wire, "r-1")
    await wire.request("r-1")
    await started(hub, "r-1")
    await wire.request("r-2", run_type="none")
    await wire.until(lambda seen: seen.id == "r-2/outcome")
    assert wire.of("r-1") == []


async def test_a_decision_for_a_finished_run_is_refused(short, hub, working):
    with working():
        await short.request("r-1", run_type="quick")
        await ended(hub, "r-1")
    command = await decide(short, "r-1")
    answer = await short.until(lambda seen: seen.id.endswith(command))
    assert answer.data["reason"] == "run_finished"


async def test_a_decision_that_the_run_never_saw_is_refused_when_it_ends(short, hub):
    await short.request("r-1")
    await started(hub, "r-1")
    command = await decide(short, "r-1")
    await asyncio.sleep(0.7)  # it is raised by now, and watched
    assert not any(seen.id.endswith(command) for seen in short.seen)
    await hub.terminate_orchestration("r-1")
    answer = await short.until(lambda seen: seen.id.endswith(command))
    assert answer.data["reason"] == "run_finished"


async def test_decisions_reach_the_run_in_order_and_the_bridge_leaves_the_answer_to_it(short, hub, working):
    await short.request("r-1", run_type="three_events")
    await started(hub, "r-1")
    for name in ("one", "two", "three"):
        await decide(short, "r-1", name, data={"note": "é"}, approver="ann", digest="d")
    with working():
        state = await ended(hub, "r-1")
    assert json.loads(state.serialized_output) == ["one", "two", "three"]
    late = await decide(short, "r-1", "late")
    await short.until(lambda seen: seen.id.endswith(late))
    assert [seen.data["approval_id"] for seen in short.of("r-1")] == ["late"]


async def test_a_decision_that_an_earlier_generation_took_is_not_refused_at_the_end(
    register, start_bridge, wire, hub, working
):
    await register(RunTypeInfo(name="two_generations"))
    await start_bridge()
    await wire.request("r-1", run_type="two_generations")
    await started(hub, "r-1")
    await decide(wire, "r-1", "taken")
    with working():
        assert (await ended(hub, "r-1")).runtime_status is OrchestrationStatus.COMPLETED
    late = await decide(wire, "r-1", "late")
    await wire.until(lambda seen: seen.id.endswith(late))
    assert [seen.data["approval_id"] for seen in wire.of("r-1")] == ["late"]


async def test_a_decision_that_waits_long_is_published_again_and_answered_once(
    register, start_bridge, wire, hub, monkeypatch, kafka_settings
):
    monkeypatch.setattr(decisions, "_REQUEUE_AFTER_S", 0.5)
    await register()
    await start_bridge()
    await wire.request("r-1")
    await started(hub, "r-1")
    command = await decide(wire, "r-1")
    consumer = AIOKafkaConsumer(
        kafka_settings.topics.approvals,
        bootstrap_servers=kafka_settings.bootstrap,
        auto_offset_reset="earliest",
    )
    await consumer.start()
    copies = [await asyncio.wait_for(consumer.getone(), 20) for _ in range(3)]
    await consumer.stop()
    first, *repeats = [(copy.partition, copy.key, copy.value, copy.headers) for copy in copies]
    assert repeats == [first, first]
    await hub.terminate_orchestration("r-1")
    answer = await wire.until(lambda seen: seen.id.endswith(command))
    assert answer.data["reason"] == "run_finished"
    assert {seen.id for seen in wire.of("r-1") if seen.type == "approval.refused"} == {answer.id}


async def test_a_cancel_whose_reason_fits_no_outcome_is_told_with_the_reason_cut(short, hub):
    later = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    await short.request("r-1", start_at=later)
    await started(hub, "r-1")
    data = {"run_id": "r-1", "action": "cancel", "reason": "because " * 127_000}
    await short.event("runs", "run.control", data)
    outcome = await short.until(lambda seen: seen.id == "r-1/outcome")
    assert outcome.type == "run.cancelled"
    assert outcome.data["reason"].startswith("because because")
    # The sweeper looks at it too.
    await asyncio.sleep(1.2)
    assert not [seen for seen in short.seen if seen.topic.endswith("dead-letters")]


async def test_a_suspension_whose_reason_fits_no_answer_is_told_with_the_reason_cut(short, hub):
    await short.request("r-1")
    await started(hub, "r-1")
    data = {"run_id": "r-1", "action": "suspend", "reason": "because " * 127_000}
    command = await short.event("runs", "run.control", data)
    answer = await short.until(lambda seen: seen.id.endswith(command))
    assert answer.data["status"]["suspended"] is True
    assert answer.data["status"]["reason"].startswith("because because")


async def test_an_input_whose_fault_can_t_be_named_in_an_event_is_rejected_all_the_same(
    register, start_bridge, wire
):
    closed = {"type": "object", "additionalProperties": {"type": "integer"}}
    await register(RunTypeInfo(name="review", input_schema=closed))
    await start_bridge()
    await wire.request("r-1", input={"x" * 700_000: "no integer"})
    rejected = await wire.until(lambda seen: seen.id == "r-1/outcome")
    assert rejected.data["error"]["type"] == "invalid_input"
