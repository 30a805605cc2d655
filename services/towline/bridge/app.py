"""Puts the bridge together: two consumers, the catalog, the scheduler, the producers."""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from towline.bridge.answers import Answers
from towline.bridge.availability import Availability
from towline.bridge.catalog import Catalog
from towline.bridge.commands import Command, Commands, read
from towline.bridge.follower import CatalogFollower
from towline.bridge.recall import Recall
from towline.bridge.scheduler import Scheduler
from towline.bridge.settings import BridgeSettings
from towline.bridge.sweeper import Sweeper
from towline.bridge.watches import Watches
from towline.contracts.errors import KafkaUnavailableError
from towline.contracts.kafka import TopicError, ensure_topics
from towline.contracts.payloads import PayloadStore, open_payload_store
from towline.contracts.producer import EventProducer
from towline.contracts.settings import KafkaSettings, PayloadSettings, SchedulerSettings
from towline.delivery import Backoff, Consumer, ConsumerOptions, Limits, Policy
from towline.delivery.dead_letters import DeadLetterWriter
from towline.delivery.metrics import observe

if TYPE_CHECKING:
    from towline.bridge.approvers import ApprovalPolicy

logger = logging.getLogger(__name__)

_DEAD_LETTER_MAX_BYTES: Final = 8 * 1024 * 1024
_DELIVERY_TIMEOUT_S: Final = 10.0
_LINGER_MS: Final = 2


@dataclass(slots=True)
class Bridge:
    """One bridge process's work. `run` until `stop`."""

    settings: BridgeSettings
    kafka: KafkaSettings
    scheduler: SchedulerSettings
    payloads: PayloadSettings = field(default_factory=PayloadSettings)
    _policy: ApprovalPolicy | None = field(default=None, init=False)
    _consumers: list[Consumer[Command]] = field(default_factory=list["Consumer[Command]"], init=False)
    _follower: CatalogFollower | None = field(default=None, init=False)
    _availability: Availability | None = field(default=None, init=False)
    _stopping: asyncio.Event = field(default_factory=asyncio.Event, init=False)

    def stop(self) -> None:
        """Drain and end `run`. Idempotent; returns at once."""
        self._stopping.set()
        for consumer in self._consumers:
            consumer.stop()

    async def run(self) -> None:
        """Bridge until stopped. Neighbours that are away are waited for, at the start too.

        Raises:
            PayloadSettingsError: The payload store's settings are of no use.
            ApprovalPolicyError: The file of the approvers' rules is of no use.
        """
        self._policy = self._read_policy()
        payloads = open_payload_store(self.payloads)
        if not await self._until_stopped(self._topics()):
            return
        async with AsyncExitStack() as exits:
            if payloads is not None:
                await exits.enter_async_context(payloads)
            producer = EventProducer(
                self.kafka,
                client_id="towline-bridge",
                delivery_timeout_s=_DELIVERY_TIMEOUT_S,
                linger_ms=_LINGER_MS,
                payloads=payloads,
                event_bytes=self.payloads.event_bytes,
            )
            dead_letters = EventProducer(
                self.kafka,
                client_id="towline-bridge-dead-letters",
                delivery_timeout_s=_DELIVERY_TIMEOUT_S,
                max_record_bytes=_DEAD_LETTER_MAX_BYTES,
            )
            for one in (producer, dead_letters):
                exits.push_async_callback(one.stop)
                if not await self._until_stopped(one.start()):
                    return
            scheduler = await exits.enter_async_context(
                Scheduler(
                    self.scheduler,
                    call_timeout_s=self.settings.call_timeout_s,
                    payloads=payloads,
                    inline_bytes=self.payloads.inline_bytes,
                    direct=self.settings.calls == "direct",
                )
            )
            await self._work(
                scheduler, producer, DeadLetterWriter(dead_letters, self.kafka.topics.dead_letters), payloads
            )

    async def _work(
        self,
        scheduler: Scheduler,
        producer: EventProducer,
        dead_letter: DeadLetterWriter,
        payloads: PayloadStore | None,
    ) -> None:
        catalog = Catalog()
        follower = self._follower = CatalogFollower(self.kafka, catalog)
        availability = self._availability = Availability(scheduler)
        answers = Answers(producer, lapsed=lambda: any(one.has_lapsed for one in self._consumers))
        commands = Commands(
            self.settings,
            scheduler=scheduler,
            availability=availability,
            catalog=catalog,
            answers=answers,
            recall=Recall(self.kafka),
            watches=Watches(scheduler, availability),
            payloads=payloads,
            policy=self._policy,
        )
        runs = self._consumer("runs", commands, dead_letter)
        # Of its own, so that a flood of requests never keeps a decision waiting.
        approvals = self._consumer("approvals", commands, dead_letter)
        self._consumers += [runs, approvals]
        observe(self._consumers)
        sweeper = Sweeper(
            scheduler,
            answers,
            every_s=self.settings.sweep_every_s,
            window_s=self.settings.sweep_window_s,
            mine=lambda: runs.has_partition(0),
        )
        helpers = [
            asyncio.create_task(follower.run(), name="catalog"),
            asyncio.create_task(availability.run(), name="availability"),
            asyncio.create_task(sweeper.run(), name="sweeper"),
        ]
        if payloads is not None:
            helpers.append(asyncio.create_task(payloads.sweep_forever(), name="payloads-sweep"))
        consuming = [asyncio.create_task(consumer.run(), name="consumer") for consumer in self._consumers]
        if self._stopping.is_set():
            self.stop()
        try:
            done, _ = await asyncio.wait([*helpers, *consuming], return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                # A helper never ends by itself, a consumer only when stopped: else it is a bug.
                task.result()
            await asyncio.gather(*consuming)
        finally:
            self.stop()
            await asyncio.wait(consuming, timeout=self.settings.drain_s * 3)
            for task in (*helpers, *consuming):
                task.cancel()
            await asyncio.gather(*helpers, *consuming, return_exceptions=True)

    def _consumer(self, topic: str, commands: Commands, dead_letter: DeadLetterWriter) -> Consumer[Command]:
        settings, topics = self.settings, self.kafka.topics
        return Consumer(
            self.kafka,
            ConsumerOptions(
                group_id=f"{topics.prefix}{settings.group}.{topic}",
                topics=(topics.runs if topic == "runs" else topics.approvals,),
                limits=Limits(max_running_count=settings.max_in_flight),
                policy=Policy(backoff=Backoff(first_s=0.1, longest_s=15.0), failures_max_count=10),
                drain_s=settings.drain_s,
            ),
            read=read,
            handle=commands.handle,
            dead_letter=dead_letter,
            hold=self._hold,
        )

    def _read_policy(self) -> ApprovalPolicy | None:
        path = self.settings.approval_policy_file
        if path is None:
            return None
        # Imported only when asked for: cryptography takes a good part of the start.
        from towline.bridge.approvers import ApprovalPolicy

        return ApprovalPolicy.read(path, topic=self.kafka.topics.approvals)

    def _hold(self) -> str | None:
        if self._availability is not None and self._availability.problem is not None:
            return self._availability.problem
        if self._follower is not None and not self._follower.caught_up:
            return "the catalog is not read yet"
        return None

    async def _topics(self) -> None:
        backoff, attempt = Backoff(first_s=0.5, longest_s=10.0), 0
        while self.settings.create_topics:
            try:
                await ensure_topics(self.kafka)
            except KafkaUnavailableError as error:
                attempt += 1
                logger.warning("kafka_away", extra={"error": str(error)})
                await asyncio.sleep(backoff.delay_s(attempt))
            except TopicError as error:
                # Not ours to decide: an administrator may have made those that we need.
                logger.warning("topics_not_created", extra={"error": str(error)})
                return
            else:
                return

    async def _until_stopped(self, work: Any) -> bool:
        """Do `work` unless stopped before; whether it was done."""
        task: asyncio.Task[Any] = asyncio.ensure_future(work)
        stopping = asyncio.ensure_future(self._stopping.wait())
        await asyncio.wait({task, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not task.done():
            task.cancel()
            await asyncio.wait({task}, timeout=1.0)
            return False
        task.result()
        return True

    # -- health; called from another thread --------------------------------------------------------------

    def not_alive(self) -> str | None:
        """What is wrong with this process that a restart would mend, or None."""
        return next((problem for one in self._consumers if (problem := one.not_alive())), None)

    def not_ready(self) -> str | None:
        """Why the bridge can't do its work now, or None."""
        if not self._consumers:
            return "starting: Kafka has not answered yet"
        if (held := self._hold()) is not None:
            return held
        return next((problem for one in self._consumers if (problem := one.not_ready())), None)
