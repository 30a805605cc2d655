"""Queries over many instances or entities: on reader threads, paged by key, bounded by rows and bytes."""

from __future__ import annotations

import base64
import binascii
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

from durabletask.internal import orchestrator_service_pb2 as pb

from towline.scheduler.engine.changes import MAX_SEQ, key
from towline.scheduler.engine.errors import InvalidRequestError
from towline.scheduler.engine.model import TERMINAL
from towline.scheduler.engine.wire import CHUNK_EVENT, fields, micros, split_history, text, timestamp
from towline.scheduler.server.views import instance_state
from towline.scheduler.store.rows import Loader, instance_of
from towline.scheduler.store.statements import SQL

PAGE_ROWS: Final = 1_000
PAGE_BYTES: Final = 1_048_576
"""Clients take 4 MiB by default and ask for pages of two billion rows. Only one row alone may be larger."""
_LIST_PAGE: Final = 100
_FOREVER: Final = 1 << 62
_AFTER_ANY_TEXT: Final = "\U0010ffff"


def _encode_token(number: int, name: str) -> str:
    return base64.urlsafe_b64encode(f"{number}|{name}".encode()).decode()


def _decode_token(token: str) -> tuple[int, str]:
    try:
        number, _, name = base64.urlsafe_b64decode(token.encode()).decode().partition("|")
        return int(number), name
    except (ValueError, binascii.Error) as error:
        raise InvalidRequestError(f"'{token}' is no continuation token of this server") from error


def query_instances(
    connection: sqlite3.Connection, hub: int, query: pb.InstanceQuery
) -> pb.QueryInstancesResponse:
    """One page of instances in order of creation."""
    token = query.continuationToken.value if query.HasField("continuationToken") else ""
    after = _decode_token(token) if token else (-1, "")
    if query.HasField("createdTimeFrom"):
        after = max(after, (micros(query.createdTimeFrom) - 1, _AFTER_ANY_TEXT))
    until = micros(query.createdTimeTo) if query.HasField("createdTimeTo") else _FOREVER
    prefix = query.instanceIdPrefix.value if query.HasField("instanceIdPrefix") else ""
    limit = min(query.maxInstanceCount, PAGE_ROWS) if query.maxInstanceCount > 0 else PAGE_ROWS
    wanted = frozenset(query.runtimeStatus)
    response = pb.QueryInstancesResponse()
    loader = Loader(connection)
    size, last = 0, after
    live_only = bool(wanted) and not wanted & TERMINAL
    for row in _instance_rows(connection, hub, after, until, prefix, live_only=live_only):
        instance = instance_of(row)
        if len(response.orchestrationState) == limit:
            response.continuationToken.value = _encode_token(*last)
            break
        if wanted and instance.status not in wanted:
            last = (instance.created, instance.id)
            continue
        data = loader.input(instance) if query.fetchInputsAndOutputs else None
        state = instance_state(instance, payloads=query.fetchInputsAndOutputs, data=data)
        size += state.ByteSize()
        if response.orchestrationState and size > PAGE_BYTES:
            response.continuationToken.value = _encode_token(*last)
            break
        last = (instance.created, instance.id)
        response.orchestrationState.append(state)
    return response


def _instance_rows(
    connection: sqlite3.Connection,
    hub: int,
    after: tuple[int, str],
    until: int,
    prefix: str,
    *,
    live_only: bool,
) -> Iterator[tuple[Any, ...]]:
    name = "query_live" if live_only else "query_instances"
    tail: tuple[object, ...] = ()
    if prefix:
        name, tail = "query_prefix", (prefix, prefix + _AFTER_ANY_TEXT)
    # One by one: a row has its output with it, and who asks for a page may want few of those that follow.
    yield from connection.execute(SQL[name], (hub, *after, until, *tail))


def list_ids(
    connection: sqlite3.Connection, hub: int, request: pb.ListInstanceIdsRequest
) -> pb.ListInstanceIdsResponse:
    """One page of ids of finished instances in order of completion."""
    token = request.lastInstanceKey.value if request.HasField("lastInstanceKey") else ""
    after = (-1, "")
    if token:
        number, _, name = token.partition("|")
        if not number.isdigit():
            raise InvalidRequestError(f"'{token}' is no instance key of this server")
        after = (int(number), name)
    if request.HasField("completedTimeFrom"):
        after = max(after, (micros(request.completedTimeFrom) - 1, _AFTER_ANY_TEXT))
    until = micros(request.completedTimeTo) if request.HasField("completedTimeTo") else _FOREVER
    limit = min(request.pageSize, PAGE_ROWS) if request.pageSize > 0 else _LIST_PAGE
    wanted = frozenset(request.runtimeStatus)
    response = pb.ListInstanceIdsResponse()
    size, last = 0, after
    for completed, name, status in connection.execute(SQL["list_ids"], (hub, *after, until)):
        if wanted and status not in wanted:
            continue
        size += len(name.encode())
        if response.instanceIds and (len(response.instanceIds) == limit or size > PAGE_BYTES):
            response.lastInstanceKey.value = f"{last[0]}|{last[1]}"
            break
        last = (completed, name)
        response.instanceIds.append(name)
    return response


def query_entities(
    connection: sqlite3.Connection, hub: int, query: pb.EntityQuery
) -> pb.QueryEntitiesResponse:
    """One page of entities in order of id."""
    token = query.continuationToken.value if query.HasField("continuationToken") else ""
    after = _decode_token(token)[1] if token else ""
    prefix = query.instanceIdStartsWith.value if query.HasField("instanceIdStartsWith") else ""
    if prefix.startswith("@"):
        name, separator, rest = prefix[1:].partition("@")
        prefix = f"@{name.lower()}{separator}{rest}"
    modified_from = micros(query.lastModifiedFrom) if query.HasField("lastModifiedFrom") else -1
    modified_to = micros(query.lastModifiedTo) if query.HasField("lastModifiedTo") else _FOREVER
    limit = (
        min(query.pageSize.value, PAGE_ROWS)
        if query.HasField("pageSize") and query.pageSize.value > 0
        else PAGE_ROWS
    )
    response = pb.QueryEntitiesResponse()
    size = 0
    values = (hub, after, prefix, prefix + _AFTER_ANY_TEXT, modified_from, modified_to)
    for _, entity_id, state, modified, holder, backlog in connection.execute(SQL["query_entities"], values):
        if state is None and not query.includeTransient:
            after = entity_id
            continue
        entity = pb.EntityMetadata(
            instanceId=entity_id,
            lastModifiedTime=timestamp(modified),
            backlogQueueSize=backlog,
            lockedBy=text(holder),
            serializedState=text(state) if query.includeState else None,
        )
        size += entity.ByteSize()
        if len(response.entities) == limit or (response.entities and size > PAGE_BYTES):
            response.continuationToken.value = _encode_token(0, after)
            break
        after = entity_id
        response.entities.append(entity)
    return response


def purge_candidates(
    connection: sqlite3.Connection,
    hub: int,
    purge: pb.PurgeInstanceFilter,
    after: tuple[int, str],
    limit: int,
) -> tuple[list[str], tuple[int, str] | None]:
    """Ids of finished instances that a purge filter names, and where to go on (None: that was all)."""
    if purge.HasField("createdTimeFrom"):
        after = max(after, (micros(purge.createdTimeFrom) - 1, _AFTER_ANY_TEXT))
    until = micros(purge.createdTimeTo) if purge.HasField("createdTimeTo") else _FOREVER
    wanted = frozenset(purge.runtimeStatus) & TERMINAL if purge.runtimeStatus else TERMINAL
    found: list[str] = []
    for row in _instance_rows(connection, hub, after, until, "", live_only=False):
        if len(found) == limit:
            return found, after
        after = (row[7], row[2])
        if row[6] in wanted:
            found.append(row[2])
    return found, None


def history_chunks(connection: sqlite3.Connection, row: int, upto: int) -> Iterator[bytes]:
    """Encoded ``HistoryChunk`` messages of at most 100 events and about 1 MiB."""
    if not upto:
        return
    rows: Iterable[tuple[bytes]] = connection.execute(
        SQL["history"], (key(row, 0), key(row, min(upto - 1, MAX_SEQ)))
    )
    chunk: list[bytes] = []
    size = 0
    for (stored,) in rows:
        for event in split_history(stored):
            if chunk and (len(chunk) == 100 or size + len(event) > PAGE_BYTES):
                yield fields(CHUNK_EVENT, chunk)
                chunk, size = [], 0
            chunk.append(event)
            size += len(event)
    if chunk:
        yield fields(CHUNK_EVENT, chunk)


def locked_entities(hub: int) -> Callable[[sqlite3.Connection], list[str]]:
    """Reads the ids of entities that are locked."""
    return lambda connection: [name for (name,) in connection.execute(SQL["locked_entities"], (hub,))]
