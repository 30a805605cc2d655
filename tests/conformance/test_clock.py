"""The clock that tests can turn, and the clock that does what it likes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest
from durabletask import entities, task
from durabletask.entities import EntityInstanceId
from google.protobuf.duration_pb2 import Duration
from google.protobuf.empty_pb2 import Empty
from google.protobuf.timestamp_pb2 import Timestamp
from tests.conformance.hubs import Hub
from tests.conformance.processes import ServerProcess
from tests.conformance.support import retrying, unique
from tests.waiting import eventually

Turns = Any


@pytest.fixture
def turned(start_server: Callable[..., ServerProcess]) -> ServerProcess:
    return start_server("--test-clock")


@pytest.fixture
def hub(turned: ServerProcess) -> Iterator[Hub]:
    made = Hub(turned)
    yield made
    made.close()


def admin(server: ServerProcess, method: str, request: Any) -> datetime:
    with grpc.insecure_channel(server.address) as channel:
        call = channel.unary_unary(f"/towline.scheduler.Admin/{method}")
        answer = call(request.SerializeToString(), timeout=10)
    return Timestamp.FromString(answer).ToDatetime(tzinfo=UTC)


def skip(server: ServerProcess, by: timedelta) -> datetime:
    duration = Duration()
    duration.FromTimedelta(by)
    return admin(server, "SkipTime", duration)


def approval(ctx: task.OrchestrationContext, _: object) -> Turns:
    began = ctx.current_utc_datetime
    decision = ctx.wait_for_external_event("decision")
    timeout = ctx.create_timer(timedelta(hours=72))
    winner = yield task.when_any([decision, timeout])
    return ["timeout" if winner is timeout else "decided", (ctx.current_utc_datetime - began).total_seconds()]


def test_an_approval_timeout_of_seventy_two_hours_takes_milliseconds(turned: ServerProcess, hub: Hub) -> None:
    hub.worker(orchestrators=[approval])
    sdk = hub.client()
    instance = sdk.schedule_new_orchestration(approval)
    eventually(lambda: len(sdk.get_orchestration_history(instance)) >= 4, "the timer is created")

    skip(turned, timedelta(hours=71))
    with pytest.raises(TimeoutError):
        sdk.wait_for_orchestration_completion(instance, timeout=0.5)
    began = time.monotonic()
    skip(turned, timedelta(hours=1, seconds=1))
    ended = sdk.wait_for_orchestration_completion(instance, timeout=10)

    assert time.monotonic() - began < 2
    assert ended is not None
    how, took_s = ended.get_output(list)
    assert how == "timeout"
    assert took_s >= 72 * 3600


def test_skipped_time_wakes_scheduled_starts_and_delayed_signals(turned: ServerProcess, hub: Hub) -> None:
    def stamp(ctx: entities.EntityContext, _: object) -> None:
        ctx.set_state("signalled")

    def started(_: task.OrchestrationContext, __: object) -> str:
        return "started"

    hub.worker(orchestrators=[started], entities=[stamp])
    sdk = hub.client()
    entity = EntityInstanceId("stamp", unique("key"))
    later = datetime.now(UTC) + timedelta(days=2)
    instance = sdk.schedule_new_orchestration(started, start_at=later)
    sdk.signal_entity(entity, "set", signal_time=later)

    skip(turned, timedelta(days=2, seconds=1))
    ended = sdk.wait_for_orchestration_completion(instance, timeout=10)
    eventually(lambda: sdk.get_entity(entity))

    assert ended is not None
    assert ended.get_output(str) == "started"


def test_skipped_time_stays_skipped_over_a_restart(turned: ServerProcess, hub: Hub) -> None:
    hub.worker(orchestrators=[approval])
    sdk = hub.client()
    instance = sdk.schedule_new_orchestration(approval)
    eventually(lambda: len(sdk.get_orchestration_history(instance)) >= 4)
    before = skip(turned, timedelta(hours=71))

    turned.restart()
    assert admin(turned, "GetTime", Empty()) >= before
    skip(turned, timedelta(hours=2))
    ended = retrying(lambda: sdk.wait_for_orchestration_completion(instance, timeout=10))

    assert ended is not None
    assert ended.get_output(list)[0] == "timeout"


def test_time_cannot_be_skipped_unless_the_server_was_started_for_it(server: ServerProcess) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        skip(server, timedelta(hours=1))

    assert refused.value.code() == grpc.StatusCode.UNIMPLEMENTED  # type: ignore[attr-defined]
