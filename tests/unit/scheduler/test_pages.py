"""Pages of queries: each is a message that a client takes as it comes, 4 MiB."""

from __future__ import annotations

from pathlib import Path

from durabletask.internal import orchestrator_service_pb2 as pb
from google.protobuf.wrappers_pb2 import StringValue
from tests.unit.scheduler.test_store import open_runtime

from towline.scheduler.engine import lifecycle
from towline.scheduler.server.queries import query_entities, query_instances
from towline.scheduler.store.statements import SQL

CLIENT_TAKES = 4 * 1024 * 1024
LARGEST = 4 * 1024 * 1024 - 131_072
"""An input may have so many bytes."""
SIZES = (500_000, LARGEST, 10, LARGEST, LARGEST)


async def test_large_inputs_one_after_the_other_come_in_pages_that_a_client_takes(tmp_path: Path) -> None:
    runtime, writer = open_runtime(tmp_path)
    hub = runtime.hub("h")
    for number, size in enumerate(SIZES):
        request = pb.CreateInstanceRequest(
            instanceId=f"run{number}", name="x", input=StringValue(value="x" * size)
        )
        runtime.change(
            lambda changes, world, now, one=request: lifecycle.start(changes, world, hub, one, now)
        )
    await runtime.journal.commit()

    query = pb.InstanceQuery(fetchInputsAndOutputs=True)
    found: list[str] = []
    while True:
        page = query_instances(writer, hub, query)
        assert page.ByteSize() <= CLIENT_TAKES
        found += [state.instanceId for state in page.orchestrationState]
        if not page.HasField("continuationToken"):
            break
        query.continuationToken.CopyFrom(page.continuationToken)

    assert found == [f"run{number}" for number in range(len(SIZES))]
    runtime.close()
    writer.close()


async def test_large_states_one_after_the_other_come_in_pages_that_a_client_takes(tmp_path: Path) -> None:
    runtime, writer = open_runtime(tmp_path)
    hub = runtime.hub("h")
    await runtime.journal.commit()
    for number, size in enumerate(SIZES):
        row = (number + 1, hub, f"@e@{number}", "x" * size, 0, None, None, None, 0, 0, 0, None)
        writer.execute(SQL["insert_entity"], row)

    query = pb.EntityQuery(includeState=True)
    found: list[str] = []
    while True:
        page = query_entities(writer, hub, query)
        assert page.ByteSize() <= CLIENT_TAKES
        found += [entity.instanceId for entity in page.entities]
        if not page.HasField("continuationToken"):
            break
        query.continuationToken.CopyFrom(page.continuationToken)

    assert found == [f"@e@{number}" for number in range(len(SIZES))]
    runtime.close()
    writer.close()
