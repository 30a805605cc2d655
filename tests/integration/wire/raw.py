"""The wire contract as any Kafka client speaks it: records, headers, JSON. Nothing of Towline in here."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, Self, TypeVar
from uuid import uuid4

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

T = TypeVar("T")
Headers = list[tuple[str, bytes]]

OUT: Final = ("events", "results", "dead-letters")
TERMINAL: Final = frozenset(
    f"towline.run.{kind}.v1" for kind in ("completed", "failed", "cancelled", "rejected")
)
PATIENCE_S: Final = 30.0


@dataclass(frozen=True)
class Seen:
    """One record that came out."""

    topic: str
    key: str | None
    value: bytes | None
    headers: Mapping[str, str]

    @property
    def id(self) -> str:
        return self.headers["ce_id"]

    @property
    def type(self) -> str:
        """The type without ``towline.`` and version: ``run.completed``."""
        return self.headers["ce_type"].removeprefix("towline.").removesuffix(".v1")

    @property
    def data(self) -> dict[str, Any]:
        return json.loads(self.value or b"{}")

    @property
    def run_id(self) -> str | None:
        return self.data.get("run_id")

    def __repr__(self) -> str:
        shown = self.headers.get("ce_type", self.headers.get("towline_dead_letter_reason"))
        return f"<{self.topic} {shown} {(self.value or b'')[:160]!r}>"


@dataclass
class Wire:
    """A producer, and a reader of all that came out since it was opened."""

    bootstrap: str
    prefix: str
    seen: list[Seen] = field(default_factory=list)

    async def __aenter__(self) -> Self:
        self._changed = asyncio.Condition()
        self._producer = AIOKafkaProducer(
            bootstrap_servers=self.bootstrap, acks="all", enable_idempotence=True
        )
        self._consumer = AIOKafkaConsumer(bootstrap_servers=self.bootstrap, fetch_max_wait_ms=100)
        await self._producer.start()
        await self._consumer.start()
        partitions: list[TopicPartition] = []
        for topic in OUT:
            found = await self._producer.partitions_for(f"{self.prefix}{topic}")
            partitions += [TopicPartition(f"{self.prefix}{topic}", number) for number in found]
        self._consumer.assign(partitions)
        for partition, end in (await self._consumer.end_offsets(partitions)).items():
            self._consumer.seek(partition, end)
        self._reader = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._reader.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)
        await self._consumer.stop()
        await self._producer.stop()

    async def _read(self) -> None:
        while True:
            batches = await self._consumer.getmany(timeout_ms=500)
            new = [
                Seen(
                    topic=partition.topic.removeprefix(self.prefix),
                    key=None if record.key is None else record.key.decode(),
                    value=record.value,
                    headers={name: value.decode() for name, value in record.headers},
                )
                for partition, records in batches.items()
                for record in records
            ]
            if new:
                async with self._changed:
                    self.seen += new
                    self._changed.notify_all()

    # Into Kafka

    async def send(
        self,
        topic: str,
        value: bytes | None,
        *,
        key: str | bytes | None = None,
        headers: Headers | None = None,
    ) -> None:
        """One record as it is."""
        await self._producer.send_and_wait(
            f"{self.prefix}{topic}",
            value,
            key=key.encode() if isinstance(key, str) else key,
            headers=headers or [],
        )

    async def publish(
        self,
        topic: str,
        kind: str,
        data: Mapping[str, Any],
        *,
        event_id: str | None = None,
        structured: bool = False,
    ) -> str:
        """A CloudEvent of type ``towline.{kind}.v1``, keyed by its run. Gives its id."""
        event_id = event_id or uuid4().hex
        key = str(data.get("run_id") or event_id)
        if structured:
            envelope = {
                "specversion": "1.0",
                "id": event_id,
                "source": "wire-test",
                "type": f"towline.{kind}.v1",
                "datacontenttype": "application/json",
                "data": data,
            }
            headers = [("content-type", b"application/cloudevents+json; charset=utf-8")]
            await self.send(topic, json.dumps(envelope).encode(), key=key, headers=headers)
        else:
            await self.send(topic, json.dumps(data).encode(), key=key, headers=binary(kind, event_id))
        return event_id

    async def start(self, run_type: str, run_input: Any = None, **more: Any) -> str:
        """Request a run; gives its id."""
        run_id = more.pop("run_id", None) or f"run-{uuid4().hex[:12]}"
        data = {"run_id": run_id, "run_type": run_type, "input": run_input, **more}
        await self.publish("runs", "run.requested", data)
        return run_id

    async def decide(self, run_id: str, approval_id: str, approved: bool, **more: Any) -> str:
        """Decide; gives the decision's event id."""
        event_id = more.pop("event_id", None)
        data = {"run_id": run_id, "approval_id": approval_id, "approved": approved, **more}
        return await self.publish("approvals", "approval.decided", data, event_id=event_id)

    async def raise_event(self, run_id: str, name: str, data: Any = None) -> str:
        return await self.publish("approvals", "event.raised", {"run_id": run_id, "name": name, "data": data})

    async def control(self, run_id: str, action: str, reason: str | None = None) -> str:
        return await self.publish(
            "runs", "run.control", {"run_id": run_id, "action": action, "reason": reason}
        )

    # Out of Kafka

    async def until(self, probe: Callable[[], T], what: str, *, timeout_s: float = PATIENCE_S) -> T:
        """Wait until `probe` gives something true, and give that."""
        deadline = asyncio.get_running_loop().time() + timeout_s
        async with self._changed:
            while not (value := probe()):
                left = deadline - asyncio.get_running_loop().time()
                try:
                    await asyncio.wait_for(self._changed.wait(), max(left, 0.001))
                except TimeoutError:
                    tail = "\n".join(map(repr, self.seen[-40:]))
                    raise AssertionError(f"not within {timeout_s:g} s: {what}. Seen:\n{tail}") from None
        return value

    async def outcome(self, run_id: str, *, timeout_s: float = PATIENCE_S) -> Seen:
        """The run's first terminal event."""
        found = await self.until(
            lambda: self.outcomes(run_id), f"the outcome of {run_id}", timeout_s=timeout_s
        )
        return found[0]

    async def all_outcomes(self, run_ids: Iterable[str], *, timeout_s: float = PATIENCE_S) -> None:
        """Wait until each run has one."""
        wanted = set(run_ids)
        await self.until(
            lambda: wanted <= {s.run_id for s in self.seen if s.topic == "results"},
            f"the outcomes of {len(wanted)} runs",
            timeout_s=timeout_s,
        )

    async def asked(self, run_id: str, approval_id: str) -> Seen:
        """The run's ``approval.requested`` of that id."""
        found = await self.until(
            lambda: [
                s for s in self.of(run_id, "approval.requested") if s.data["approval_id"] == approval_id
            ],
            f"{run_id} asks {approval_id}",
        )
        return found[0]

    async def answer(self, command_id: str, *, timeout_s: float = PATIENCE_S) -> Seen:
        """What answers a decision, raised event or control command: its id ends in the command's."""
        found = await self.until(
            lambda: self.answers(command_id), f"an answer to {command_id}", timeout_s=timeout_s
        )
        return found[0]

    def of(self, run_id: str, kind: str | None = None) -> list[Seen]:
        """All of one run, by kind."""
        return [
            seen
            for seen in self.seen
            if seen.topic != "dead-letters" and seen.run_id == run_id and kind in (None, seen.type)
        ]

    def outcomes(self, run_id: str) -> list[Seen]:
        return [seen for seen in self.of(run_id) if seen.headers["ce_type"] in TERMINAL]

    def answers(self, command_id: str) -> list[Seen]:
        """One of each id: a repeat is no second answer."""
        found = [s for s in self.seen if s.topic == "events" and s.id.endswith(f"/{command_id}")]
        return list({seen.id: seen for seen in found}.values())

    def dead_letters(self, key: str) -> list[Seen]:
        return [seen for seen in self.seen if seen.topic == "dead-letters" and seen.key == key]

    async def settle(self) -> None:
        """Until a run that was requested now is through on every partition: what was on its way is out."""
        markers = [await self.start("agent.Joker", {"message": "settle"}) for _ in range(6)]
        await self.all_outcomes(markers)


def binary(kind: str, event_id: str | None = None, **more: str) -> Headers:
    """Headers of a CloudEvent in binary mode."""
    attributes = {
        "ce_specversion": "1.0",
        "ce_id": event_id or uuid4().hex,
        "ce_source": "wire-test",
        "ce_type": f"towline.{kind}.v1",
        "ce_time": datetime.now(UTC).isoformat(),
        "content-type": "application/json",
        **more,
    }
    return [(name, value.encode()) for name, value in attributes.items()]
