"""What waits for an entity: it costs no more for being long, and is bounded."""

from __future__ import annotations

import time

import pytest
from durabletask.internal import orchestrator_service_pb2 as pb
from tests.unit.scheduler.worlds import HUB, Bench

from towline.scheduler.engine import entities
from towline.scheduler.engine.errors import TooLargeError
from towline.scheduler.engine.model import Entity, Operation, OperationKind
from towline.scheduler.engine.ports import Limits


def test_a_signal_costs_the_same_however_many_wait_before_it() -> None:
    """The queue was gone through for each: with 25,000 that waited for a worker, a signal took 2.5 ms."""
    bench = Bench()
    entity = bench.world.entity(HUB, "@counter@one")

    def signal_all(count: int) -> float:
        began = time.process_time()
        for _ in range(count):
            request = pb.SignalEntityRequest(instanceId=entity.id, name="add")
            entities.signal(bench.changes, bench.world, HUB, request, bench.now)
        return time.process_time() - began

    few = signal_all(1_000)
    signal_all(30_000)
    # The least of three: a pass of the garbage collector is a tenth of a second.
    assert min(signal_all(1_000) for _ in range(3)) < 10 * few + 0.05


def test_a_lock_waits_at_its_place_and_what_is_before_it_may_run() -> None:
    entity = Entity(1, HUB, "@counter@one")
    lock = Operation(1, OperationKind.LOCK, "s", b"[]")
    entity.queue = [lock, Operation(2, OperationKind.SIGNAL, "a", b"")]
    assert not entity.due
    entity.queue = [Operation(3, OperationKind.SIGNAL, "b", b""), lock]
    assert entity.due
    entity.lock_section, entity.lock_holder, entity.lock_execution = "s", "run", "e"
    assert not entity.due
    entity.queue.append(Operation(4, OperationKind.CALL, "c", b"", "run", "e"))
    assert entity.due


@pytest.mark.parametrize("limits", [Limits(inbox_messages=3), Limits(inbox_bytes=10_000)])
def test_an_entity_that_nobody_serves_takes_so_many_signals_of_clients_and_no_more(limits: Limits) -> None:
    bench = Bench()
    bench.world.limits = limits
    entity = bench.world.entity(HUB, "@counter@one")
    request = pb.SignalEntityRequest(instanceId=entity.id, name="add", input={"value": "x" * 4_000})
    for _ in range(3):
        entities.signal_from_client(bench.changes, bench.world, HUB, request, bench.now)

    with pytest.raises(TooLargeError, match="the limit is"):
        entities.signal_from_client(bench.changes, bench.world, HUB, request, bench.now)
    bench.run_entity(entity, lambda state, operation: (state, ""))
    assert not entity.queue
    entities.signal_from_client(bench.changes, bench.world, HUB, request, bench.now)
