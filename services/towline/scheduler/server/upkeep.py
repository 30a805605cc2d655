"""What has to happen now and then: leases, pings, what nobody takes, retention, emptying deleted hubs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from towline.scheduler.engine import control
from towline.scheduler.engine.changes import MAX_SEQ, key
from towline.scheduler.engine.errors import NotDurableError
from towline.scheduler.engine.wire import MICROS
from towline.scheduler.server.readers import Readers
from towline.scheduler.server.runtime import Runtime
from towline.scheduler.server.unclaimed import Unclaimed
from towline.scheduler.store.statements import SQL

_log = logging.getLogger(__name__)

_LEASE_CHECK_S: Final = 1.0
_RETENTION_CHECK_S: Final = 30.0
_HUB_CHECK_S: Final = 5.0
_UNCLAIMED_CHECK_S: Final = 5.0
_SIGNAL_MEMORY_S: Final = 3600.0
_AT_ONCE: Final = 200


class Upkeep:
    """Periodic tasks, each named and watched."""

    def __init__(
        self,
        runtime: Runtime,
        readers: Readers,
        *,
        ping_s: float,
        retention_s: float | None,
        unclaimed_after_s: float = 30.0,
    ) -> None:
        self._runtime = runtime
        self._readers = readers
        self._ping_s = ping_s
        self._retention_s = retention_s
        self._unclaimed_after_s = unclaimed_after_s
        self._unclaimed = Unclaimed(runtime.dispatcher, lambda: runtime.hubs, after_s=unclaimed_after_s)
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Start the tasks."""
        jobs: list[tuple[str, float, Callable[[], Awaitable[None]]]] = [
            ("leases", _LEASE_CHECK_S, self._check_leases),
            ("pings", self._ping_s, self._ping),
            ("hubs", _HUB_CHECK_S, self._empty_hubs),
            ("signals", _SIGNAL_MEMORY_S / 4, self._forget_signals),
            ("unclaimed", min(_UNCLAIMED_CHECK_S, self._unclaimed_after_s), self._look_for_unclaimed),
        ]
        if self._retention_s is not None:
            jobs.append(("retention", min(_RETENTION_CHECK_S, self._retention_s), self._expire_instances))
        self._tasks = [
            asyncio.create_task(self._every(name, period, job), name=f"scheduler-{name}")
            for name, period, job in jobs
        ]

    async def stop(self) -> None:
        """Stop the tasks."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _every(self, name: str, period_s: float, job: Callable[[], Awaitable[None]]) -> None:
        while True:
            await asyncio.sleep(period_s)
            try:
                await job()
            except NotDurableError as error:
                _log.warning("upkeep.failed", extra={"job": name, "error": str(error)})
            except Exception:  # noqa: BLE001  # whatever it is, leases go on running out
                _log.exception("upkeep.failed", extra={"job": name})

    async def _check_leases(self) -> None:
        self._runtime.losses.expire()

    async def _ping(self) -> None:
        self._runtime.dispatcher.ping()

    async def _look_for_unclaimed(self) -> None:
        self._unclaimed.look(self._runtime.loop.time())

    async def _forget_signals(self) -> None:
        before = self._runtime.clock.now() - int(_SIGNAL_MEMORY_S * MICROS)
        self._runtime.journal.changes.rows.append(("delete_signal_seen_before", (before,)))
        await self._runtime.journal.commit()

    async def _expire_instances(self) -> None:
        runtime = self._runtime
        assert self._retention_s is not None
        before = runtime.clock.now() - int(self._retention_s * MICROS)
        for hub in list(runtime.hubs.values()):
            while True:
                found = await self._readers.run(
                    lambda connection, hub=hub: connection.execute(
                        SQL["expired_instances"], (hub, before, _AT_ONCE)
                    ).fetchall()
                )
                for _, instance_id in found:
                    instance = runtime.world.instance(hub, instance_id)
                    if (
                        instance is not None
                        and instance.completed is not None
                        and instance.completed < before
                    ):
                        runtime.change(
                            lambda changes, world, _now, old=instance: control.purge(
                                changes, world, old, recursive=False
                            )
                        )
                await runtime.journal.commit()
                if len(found) < _AT_ONCE:
                    break

    async def _empty_hubs(self) -> None:
        runtime = self._runtime
        doomed = list(runtime.doomed_hubs)
        if doomed:
            await runtime.journal.commit()  # not before it is on disk that they are
        for hub in doomed:
            while await self._empty_some(hub):
                await runtime.journal.commit()
            rows = runtime.journal.changes.rows
            rows.append(("delete_timers_of_hub", (hub,)))
            rows.append(("delete_hub", (hub,)))
            await runtime.journal.commit()
            runtime.doomed_hubs.discard(hub)

    async def _empty_some(self, hub: int) -> bool:
        instances = await self._readers.run(
            lambda connection: connection.execute(SQL["some_instances"], (hub, _AT_ONCE)).fetchall()
        )
        entities = await self._readers.run(
            lambda connection: connection.execute(SQL["some_entities"], (hub, _AT_ONCE)).fetchall()
        )
        rows = self._runtime.journal.changes.rows
        for row, _ in instances:
            span = (key(row, 0), key(row, MAX_SEQ))
            rows += [
                ("delete_history_range", span),
                ("delete_inbox_range", span),
                ("delete_activities_of", (row,)),
                ("delete_timers_of", (row,)),
                ("delete_instance", (row,)),
            ]
        for (row,) in entities:
            rows += [("delete_operations_of", (row,)), ("delete_entity", (row,))]
        return bool(instances or entities)
