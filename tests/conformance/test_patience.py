"""What only shows after half a minute of nothing; the waits of all tests here run side by side."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from durabletask import task
from durabletask.client import OrchestrationStatus
from tests.conformance.hand_worker import HandWorker
from tests.conformance.hubs import Hub
from tests.conformance.processes import ServerProcess
from tests.conformance.support import unique

Turns = Any


@dataclass
class Patience:
    idle: HandWorker
    hub: Hub
    parent: str
    child: str
    began: float


def long_parent(ctx: task.OrchestrationContext, child: str) -> Turns:
    return (yield ctx.call_sub_orchestrator(long_child, instance_id=child))


def long_child(ctx: task.OrchestrationContext, _: object) -> Turns:
    return (yield ctx.wait_for_external_event("end"))


@pytest.fixture(scope="module")
def patience(server: ServerProcess) -> Iterator[Patience]:
    quiet, busy = Hub(server), Hub(server)
    busy.worker(orchestrators=[long_parent, long_child])
    child = unique("child")
    parent = busy.client().schedule_new_orchestration(long_parent, input=child)
    yield Patience(quiet.hand_worker(), busy, parent, child, time.monotonic())
    busy.close()
    quiet.close()


@pytest.mark.acceptance(20)
@pytest.mark.slow
def test_an_idle_stream_is_pinged_within_a_minute(patience: Patience) -> None:
    patience.idle.next("healthPing", timeout_s=60)


@pytest.mark.acceptance(8)
@pytest.mark.slow
def test_a_child_of_more_than_thirty_seconds_returns_to_its_parent(patience: Patience) -> None:
    sdk = patience.hub.client()
    remaining = patience.began + 31 - time.monotonic()
    if remaining > 0:
        with pytest.raises(TimeoutError):
            sdk.wait_for_orchestration_completion(patience.parent, timeout=remaining)

    sdk.raise_orchestration_event(patience.child, "end", data="late")
    ended = sdk.wait_for_orchestration_completion(patience.parent, timeout=10)

    assert ended is not None
    assert ended.runtime_status == OrchestrationStatus.COMPLETED
    assert ended.get_output(str) == "late"
