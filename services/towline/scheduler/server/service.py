"""The RPCs of ``TaskHubSidecarService``, one method each."""

from __future__ import annotations

import time
from typing import Any, Final, TypeAlias

from durabletask.internal import orchestrator_service_pb2 as pb

from towline.scheduler.engine import control, entities, lifecycle, rewind
from towline.scheduler.engine.errors import InvalidRequestError, NotFoundError, TooLargeError
from towline.scheduler.engine.model import Instance
from towline.scheduler.server import queries, views
from towline.scheduler.server.readers import Readers
from towline.scheduler.server.runtime import Runtime

_PURGE_BATCH: Final = 200

Reply: TypeAlias = bytes
EMPTY: Final = b""


class Service:
    """Answers clients and workers. ``hub`` is the task hub that the call names."""

    def __init__(self, runtime: Runtime, readers: Readers) -> None:
        self._runtime = runtime
        self._readers = readers
        self._answers = runtime.answers
        self._durable = runtime.journal.commit

    # -- checks

    def _check_payload(self, what: str, value: str) -> None:
        limit = self._runtime.world.limits.payload_bytes
        if len(value) * 4 > limit and (size := len(value.encode())) > limit:
            raise TooLargeError(f"{what} is too large: it has {size} bytes, the limit is {limit} bytes")

    # -- clients: instances

    def start_instance(self, request: pb.CreateInstanceRequest, hub: int) -> Reply:
        """Start an instance; durable when answered."""
        self._check_payload("input", request.input.value)
        if not request.name:
            raise InvalidRequestError("an orchestration needs a name")
        if request.instanceId.startswith("@"):
            raise InvalidRequestError("ids that start with '@' are those of entities")
        instance = self._runtime.change(
            lambda changes, world, now: lifecycle.start(changes, world, hub, request, now)
        )
        return pb.CreateInstanceResponse(instanceId=instance.id).SerializeToString()

    def _find(self, hub: int, instance_id: str) -> Instance | None:
        """Looked for before it is changed: if it can't be read then, all that is not on disk is undone."""
        return self._runtime.world.instance(hub, instance_id)

    def settled(self, hub: int, instance_id: str) -> tuple[bool, Instance | None]:
        """Whether what memory has of an instance is on disk, and the instance as it is there.

        What is shown must not be undone by a failed commit.
        """
        instance = self._find(hub, instance_id)
        uncommitted = instance.pins > 0 if instance is not None else self._is_dying(hub, instance_id)
        return not uncommitted, instance

    async def _settled(self, hub: int, instance_id: str) -> Instance | None:
        settled, instance = self.settled(hub, instance_id)
        if not settled:
            await self._durable()
            instance = self._find(hub, instance_id)
        return instance

    def _is_dying(self, hub: int, instance_id: str) -> bool:
        return self._runtime.world.known_instance(hub, instance_id) is not None

    def state_of(self, instance: Instance | None, request: pb.GetInstanceRequest) -> Reply:
        """What a client is shown of an instance."""
        if instance is None:
            return pb.GetInstanceResponse(exists=False).SerializeToString()
        response = pb.GetInstanceResponse(exists=True)
        payloads = request.getInputsAndOutputs
        data = self._runtime.world.load_input(instance) if payloads else None
        views.fill_instance_state(response.orchestrationState, instance, payloads=payloads, data=data)
        return response.SerializeToString()

    async def get_instance(self, request: pb.GetInstanceRequest, hub: int) -> Reply:
        """State of an instance."""
        reply = self.state_of(await self._settled(hub, request.instanceId), request)
        self._runtime.world.trim()
        return reply

    def raise_event(self, request: pb.RaiseEventRequest, hub: int) -> Reply:
        """Deliver an external event; durable when answered."""
        self._check_payload("event data", request.input.value)
        data = request.input.value if request.HasField("input") else None
        self._find(hub, request.instanceId)
        self._runtime.change(
            lambda changes, world, now: control.raise_event(
                changes, world, hub, request.instanceId, request.name, data, now
            )
        )
        return EMPTY

    def terminate(self, request: pb.TerminateRequest, hub: int) -> Reply:
        """End an instance, without any worker."""
        output = request.output.value if request.HasField("output") else None
        self._find(hub, request.instanceId)
        self._runtime.change(
            lambda changes, world, now: control.terminate(
                changes, world, hub, request.instanceId, output, recursive=request.recursive, now=now
            )
        )
        return EMPTY

    def suspend(self, request: pb.SuspendRequest, hub: int) -> Reply:
        """Hand out no further turns of an instance."""
        reason = request.reason.value if request.HasField("reason") else None
        self._find(hub, request.instanceId)
        self._runtime.change(
            lambda changes, world, now: control.suspend(changes, world, hub, request.instanceId, reason, now)
        )
        return EMPTY

    def resume(self, request: pb.ResumeRequest, hub: int) -> Reply:
        """Go on with a suspended instance."""
        reason = request.reason.value if request.HasField("reason") else None
        self._find(hub, request.instanceId)
        self._runtime.change(
            lambda changes, world, now: control.resume(changes, world, hub, request.instanceId, reason, now)
        )
        return EMPTY

    def rewind(self, request: pb.RewindInstanceRequest, hub: int) -> Reply:
        """Run a failed instance again from its last good point."""
        reason = request.reason.value if request.HasField("reason") else None
        self._find(hub, request.instanceId)
        self._runtime.change(
            lambda changes, world, now: rewind.request(changes, world, hub, request.instanceId, reason, now)
        )
        return EMPTY

    def restart(self, request: pb.RestartInstanceRequest, hub: int) -> Reply:
        """Run a finished instance again."""
        self._find(hub, request.instanceId)
        instance = self._runtime.change(
            lambda changes, world, now: control.restart(
                changes, world, hub, request.instanceId, new_id=request.restartWithNewInstanceId, now=now
            )
        )
        return pb.RestartInstanceResponse(instanceId=instance.id).SerializeToString()

    async def query_instances(self, request: pb.QueryInstancesRequest, hub: int) -> Reply:
        """One page of instances."""
        response = await self._readers.run(
            lambda connection: queries.query_instances(connection, hub, request.query)
        )
        return response.SerializeToString()

    async def list_ids(self, request: pb.ListInstanceIdsRequest, hub: int) -> Reply:
        """One page of ids of finished instances."""
        response = await self._readers.run(lambda connection: queries.list_ids(connection, hub, request))
        return response.SerializeToString()

    async def history(
        self, request: pb.StreamInstanceHistoryRequest, hub: int, token: str | None
    ) -> list[bytes]:
        """Chunks of the committed history; with the `token` of a turn only what goes before that turn."""
        instance = await self._settled(hub, request.instanceId)
        if instance is None:
            raise NotFoundError(f"no orchestration instance with the id '{request.instanceId}'")
        if token is not None and (instance.turn is None or instance.turn.token != token):
            # What has come since would be taken for what the turn replays.
            raise NotFoundError(f"the turn of '{request.instanceId}' is this worker's no more")
        row, upto = instance.row, instance.history_seq
        return await self._readers.run(lambda connection: list(queries.history_chunks(connection, row, upto)))

    async def purge(self, request: pb.PurgeInstancesRequest, hub: int) -> Reply:
        """Delete finished instances, or an idle entity."""
        which = request.WhichOneof("request")
        complete = True
        if which == "purgeInstanceFilter":
            count, complete = await self._purge_by_filter(
                request.purgeInstanceFilter, hub, recursive=request.recursive
            )
        else:
            ids = [request.instanceId] if which == "instanceId" else list(request.instanceBatch.instanceIds)
            count = 0
            for start in range(0, len(ids), _PURGE_BATCH):
                count += self._purge(ids[start : start + _PURGE_BATCH], hub, recursive=request.recursive)
                await self._durable()
        response = pb.PurgeInstancesResponse(deletedInstanceCount=count)
        response.isComplete.value = complete
        return response.SerializeToString()

    def _purge(self, ids: list[str], hub: int, *, recursive: bool) -> int:
        runtime = self._runtime
        count = 0
        for instance_id in ids:
            if entities.is_entity_id(instance_id):
                count += self._purge_entity(instance_id, hub)
                continue
            instance = self._find(hub, instance_id)
            if instance is not None:
                count += runtime.change(
                    lambda changes, world, _now, found=instance: control.purge(
                        changes, world, found, recursive=recursive
                    )
                )
        return count

    def _purge_entity(self, entity_id: str, hub: int) -> int:
        entity = self._runtime.world.entity(hub, entities.normal_id(entity_id))
        if not entity.stored or entity.queue or entity.lock_section is not None:
            return 0
        entity.state = None
        self._runtime.change(lambda changes, _world, _now: changes.touch_entity(entity))
        return 1

    async def _purge_by_filter(
        self, purge: pb.PurgeInstanceFilter, hub: int, *, recursive: bool
    ) -> tuple[int, bool]:
        until = time.monotonic() + purge.timeout.ToMicroseconds() / 1e6 if purge.HasField("timeout") else None
        count = 0
        after: tuple[int, str] | None = (-1, "")
        while after is not None:
            start = after
            found, after = await self._readers.run(
                lambda connection, start=start: queries.purge_candidates(
                    connection, hub, purge, start, _PURGE_BATCH
                )
            )
            count += self._purge(found, hub, recursive=recursive)
            await self._durable()
            if after is not None and until is not None and time.monotonic() >= until:
                return count, False
        return count, True

    async def skip_terminations(
        self, request: pb.SkipGracefulOrchestrationTerminationsRequest, hub: int
    ) -> Reply:
        """Terminate instances at once; answers those that were not running."""
        reason = request.reason.value if request.HasField("reason") else None
        left: list[str] = []
        for instance_id in request.instanceBatch.instanceIds:
            done = self._runtime.change(
                lambda changes, world, now, name=instance_id: control.terminate(
                    changes, world, hub, name, reason, recursive=False, now=now
                )
            )
            if not done:
                left.append(instance_id)
        await self._durable()
        return pb.SkipGracefulOrchestrationTerminationsResponse(
            unterminatedInstanceIds=left
        ).SerializeToString()

    # -- clients: entities

    def signal_entity(self, request: pb.SignalEntityRequest, hub: int) -> Reply:
        """Queue a signal; durable when answered, and once per request id."""
        self._check_payload("signal input", request.input.value)
        self._runtime.signal(hub, request)
        return EMPTY

    async def get_entity(self, request: pb.GetEntityRequest, hub: int) -> Reply:
        """Metadata and state of an entity."""
        entity = self._runtime.world.entity(hub, entities.normal_id(request.instanceId))
        if entity.pins:
            await self._durable()
        if not entity.stored:
            return pb.GetEntityResponse(exists=False).SerializeToString()
        self._runtime.world.trim()
        metadata = views.entity_metadata(entity, include_state=request.includeState)
        return pb.GetEntityResponse(exists=True, entity=metadata).SerializeToString()

    async def query_entities(self, request: pb.QueryEntitiesRequest, hub: int) -> Reply:
        """One page of entities."""
        response = await self._readers.run(
            lambda connection: queries.query_entities(connection, hub, request.query)
        )
        return response.SerializeToString()

    async def clean_entities(self, request: pb.CleanEntityStorageRequest, hub: int) -> Reply:
        """Release orphaned locks; empty entities are removed as they become empty."""
        # Empty entities are removed as they become empty: there are none to remove.
        released = 0
        if request.releaseOrphanedLocks:
            await self._durable()
            locked = await self._readers.run(queries.locked_entities(hub))
            for entity_id in locked:
                released += self._runtime.change(
                    lambda changes, world, now, name=entity_id: entities.release_orphan(
                        changes, world, world.entity(hub, name), now
                    )
                )
            await self._durable()
        return pb.CleanEntityStorageResponse(orphanedLocksReleased=released).SerializeToString()

    # -- task hubs

    async def create_hub(self, request: pb.CreateTaskHubRequest, _hub: int, name: str) -> Reply:
        """Make a task hub, or empty it."""
        if request.recreateIfExists:
            self._runtime.doom_hub(name)
        self._runtime.hub(name)
        await self._durable()
        return EMPTY

    async def delete_hub(self, _request: pb.DeleteTaskHubRequest, _hub: int, name: str) -> Reply:
        """Delete a task hub with all that it has."""
        self._runtime.doom_hub(name)
        await self._durable()
        return EMPTY

    # -- workers

    def complete_turn(self, request: pb.OrchestratorResponse, _hub: int) -> Reply:
        """Take a worker's answer for a turn; a stale token changes nothing."""
        self._answers.complete_turn(request)
        return EMPTY

    def complete_activity(self, request: pb.ActivityResponse, _hub: int) -> Reply:
        """Take a worker's answer for an activity; a stale token changes nothing."""
        self._answers.complete_activity(request)
        return EMPTY

    def complete_batch(self, request: pb.EntityBatchResult, _hub: int) -> Reply:
        """Take a worker's answer for an entity batch; a stale token changes nothing."""
        self._answers.complete_batch(request)
        return EMPTY

    def abandon(self, request: Any, _hub: int) -> Reply:
        """Take back a work item."""
        self._runtime.losses.abandon(request.completionToken)
        return EMPTY
