"""Pages of queries: each is a message that a client takes as it comes, 4 MiB."""

from __future__ import annotations

import sqlite3
import tracemalloc
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TypeVar

from durabletask.internal import orchestrator_service_pb2 as pb
from google.protobuf.wrappers_pb2 import StringValue

from towline.scheduler.engine import lifecycle
from towline.scheduler.server.queries import list_ids, purge_candidates, query_entities, query_instances
from towline.scheduler.server.runtime import Runtime
from towline.scheduler.store.statements import SQL

CLIENT_TAKES = 4 * 1024 * 1024
LARGEST = 4 * 1024 * 1024 - 131_072
"""An input may have so many bytes."""
QueryT = TypeVar("QueryT", pb.InstanceQuery, pb.EntityQuery)
PageT = TypeVar("PageT", pb.QueryInstancesResponse, pb.QueryEntitiesResponse)
SIZES = (500_000, LARGEST, 10, LARGEST, LARGEST)


def pages_of(query: QueryT, ask: Callable[[QueryT], PageT]) -> list[PageT]:
    """All of them, none larger than a client takes."""
    pages: list[PageT] = []
    while True:
        page = ask(query)
        assert page.ByteSize() <= CLIENT_TAKES
        pages.append(page)
        if not page.HasField("continuationToken"):
            return pages
        query.continuationToken.CopyFrom(page.continuationToken)


async def test_large_inputs_one_after_the_other_come_in_pages_that_a_client_takes(
    runtime: Runtime, writer: sqlite3.Connection
) -> None:
    hub = runtime.hub("h")
    for number, size in enumerate(SIZES):
        request = pb.CreateInstanceRequest(
            instanceId=f"run{number}", name="x", input=StringValue(value="x" * size)
        )
        runtime.change(
            lambda changes, world, now, one=request: lifecycle.start(changes, world, hub, one, now)
        )
    await runtime.journal.commit()

    pages = pages_of(
        pb.InstanceQuery(fetchInputsAndOutputs=True), lambda query: query_instances(writer, hub, query)
    )
    assert [state.instanceId for page in pages for state in page.orchestrationState] == [
        f"run{number}" for number in range(len(SIZES))
    ]


async def test_large_states_one_after_the_other_come_in_pages_that_a_client_takes(
    runtime: Runtime, writer: sqlite3.Connection
) -> None:
    hub = runtime.hub("h")
    await runtime.journal.commit()
    for number, size in enumerate(SIZES):
        row = (number + 1, hub, f"@e@{number}", "x" * size, 0, None, None, None, 0, 0, 0, None)
        writer.execute(SQL["insert_entity"], row)

    pages = pages_of(pb.EntityQuery(includeState=True), lambda query: query_entities(writer, hub, query))
    assert [entity.instanceId for page in pages for entity in page.entities] == [
        f"@e@{number}" for number in range(len(SIZES))
    ]


@contextmanager
def memory_bound(megabytes: int) -> Generator[None]:
    """Fails if more is allocated meanwhile."""
    tracemalloc.start()
    yield
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < megabytes << 20


async def test_a_page_takes_the_memory_of_what_is_on_it_not_of_all_that_follows(
    runtime: Runtime, writer: sqlite3.Connection
) -> None:
    """Of 256 large outputs all were read for each page, and every page showed one of them."""
    hub = runtime.hub("h")
    for number in range(30):
        request = pb.CreateInstanceRequest(instanceId=f"run{number}", name="x")
        runtime.change(
            lambda changes, world, now, one=request: lifecycle.start(changes, world, hub, one, now)
        )
    await runtime.journal.commit()
    writer.execute("UPDATE instance SET output=?", ("x" * 1_000_000,))
    for number in range(30):
        row = (number + 100, hub, f"@e@{number}", "x" * 1_000_000, 0, None, None, None, 0, 0, 0, None)
        writer.execute(SQL["insert_entity"], row)

    with memory_bound(12):
        query_instances(writer, hub, pb.InstanceQuery(maxInstanceCount=1))
    with memory_bound(12):
        query_entities(writer, hub, pb.EntityQuery(includeState=True))
    with memory_bound(12):
        purge_candidates(writer, hub, pb.PurgeInstanceFilter(), (-1, ""), 200)


async def test_ids_come_in_pages_that_a_client_takes_whatever_size_it_asks_for(
    runtime: Runtime, writer: sqlite3.Connection
) -> None:
    hub = runtime.hub("h")
    names = [f"{number:05}-{'x' * 2_000}" for number in range(2_500)]
    for name in names:
        request = pb.CreateInstanceRequest(instanceId=name, name="x")
        runtime.change(
            lambda changes, world, now, one=request: lifecycle.start(changes, world, hub, one, now)
        )
    await runtime.journal.commit()
    writer.execute("UPDATE instance SET completed=created, status=1")

    found: list[str] = []
    request = pb.ListInstanceIdsRequest(pageSize=1_000_000)
    while True:
        page = list_ids(writer, hub, request)
        assert page.ByteSize() <= CLIENT_TAKES
        found += page.instanceIds
        if not page.HasField("lastInstanceKey"):
            break
        request.lastInstanceKey.CopyFrom(page.lastInstanceKey)
    assert sorted(found) == names
