"""The load: a mix of runs, the people who decide and cancel, and records that are no events.

What is sent follows from the seed alone; when, and what comes in between, does not. Records without
acknowledgement are sent again as they are.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Coroutine
from dataclasses import dataclass, field, replace
from typing import Any, Final, Self

import httpx
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord, TopicPartition
from aiokafka.errors import KafkaError
from tests.chaos.checker import OUTCOMES
from tests.chaos.history import MARK, ORIGIN_TOPIC, ControlKind, Kind, Record, Sent

from towline.contracts.settings import KafkaSettings

TOPICS: Final = ("runs", "approvals", "events", "results", "dead-letters")
_COMPLETED: Final = ("run.completed",)
_RELAY_SOURCE: Final = "towline/relay"
_GARBAGE: Final[tuple[tuple[bytes | None, dict[str, str]], ...]] = (
    (b"{", {}),
    (None, {}),
    (b"", {}),
    (b"\xff\xfe", {}),
    (b"[" * 5000, {}),
    (b'{"run_id": "x y", "run_type": "count"}', {}),
    (b'{"run_id": "x", "run_type": 7}', {}),
    (b'{"run_id": "x"}', {}),
    (b"{}", {"ce_type": "towline.run.invented.v1"}),
    (b"{}", {"ce_specversion": "0.3"}),
    (b"{}", {"ce_id": ""}),
    (b"<run/>", {"content-type": "text/xml"}),
)
SCENES: Final = (
    ("count", 30),
    ("agent", 12),
    ("approve", 10),
    ("reject", 6),
    ("early", 6),
    ("duplicate", 6),
    ("cancel", 8),
    ("race", 6),
    ("family", 6),
    ("unknown_type", 3),
    ("nobody", 3),
    ("pause", 6),
    ("http", 8),
    ("garbage", 10),
)
"""What may happen, and how often of a hundred times."""


EACH_ONCE: Final = [*["approve"] * 100, *["reject"] * 20, *["cancel"] * 40, *["long"] * 40]
"""200 runs in flight: most wait for a person; the last are at work."""
_LONG_STEPS: Final = 120


def scenes(seed: int, count: int) -> list[str]:
    """`count` scenes; all kinds are among the first."""
    names, weights = zip(*SCENES, strict=True)
    chosen = [*names, *random.Random(seed).choices(names, weights, k=count)]
    return chosen[:count]


@dataclass
class Load:
    """Plays scenes, remembers all that it sends, and reads all that comes back.

    Args:
        kafka: Where.
        seed: Names the runs and chooses their inputs.
        relay_url: Where runs are posted by HTTP.
        held: Nobody decides or cancels until `release`.
    """

    kafka: KafkaSettings
    seed: int
    relay_url: str
    held: bool = False
    sent: dict[str, Sent] = field(default_factory=dict[str, Sent])
    records: list[Record] = field(default_factory=list[Record])
    _random: random.Random = field(init=False)
    _asked: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    """Runs that will ask, and the decisions (event ids) to be sent then."""
    _verdicts: dict[str, bool] = field(default_factory=dict[str, bool])
    _ended: set[str] = field(default_factory=set[str])
    _answered: set[str] = field(default_factory=set[str])
    _lettered: set[str] = field(default_factory=set[str])
    _cancelled: set[str] = field(default_factory=set[str])
    _seen: set[str] = field(default_factory=set[str])
    _started: set[str] = field(default_factory=set[str])
    _withheld: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    """Decisions and cancels to be sent at the release: run and event id or reason."""
    _sending: set[asyncio.Task[None]] = field(default_factory=set[asyncio.Task[None]])
    _number: int = 0

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    async def __aenter__(self) -> Self:
        self._producer = AIOKafkaProducer(bootstrap_servers=self.kafka.bootstrap, acks="all")
        await self._producer.start()
        self._consumer = AIOKafkaConsumer(bootstrap_servers=self.kafka.bootstrap, fetch_max_wait_ms=100)
        await self._consumer.start()
        partitions: list[TopicPartition] = []
        for topic in TOPICS:
            name = f"{self.kafka.topic_prefix}{topic}"
            partitions += [TopicPartition(name, n) for n in await self._producer.partitions_for(name)]
        self._consumer.assign(partitions)
        await self._consumer.seek_to_beginning()
        self._http = httpx.AsyncClient(base_url=self.relay_url, timeout=10.0)
        self._reader = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *_: object) -> None:
        tasks = [self._reader, *self._sending]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._http.aclose()
        await self._consumer.stop()
        await self._producer.stop()

    # What is sent

    async def play(self, names: list[str], *, for_s: float) -> None:
        """All of the scenes, evenly over `for_s` seconds."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        for number, name in enumerate(names):
            await asyncio.sleep(max(0.0, began + for_s * number / len(names) - loop.time()))
            self._scene(name)

    def _scene(self, name: str) -> None:
        self._number += 1
        run_id = f"chaos-{self.seed}-{self._number}-{name}"
        steps = self._random.randint(1, 5)
        match name:
            case "count" | "family" | "long" | "http":
                run_type = "family" if name == "family" else "count"
                steps = _LONG_STEPS if name == "long" else steps
                self._request(run_id, run_type, {"steps": steps}, _COMPLETED, by_http=name == "http")
            case "agent":
                self._request(run_id, "agent.Echo", {"message": run_id}, _COMPLETED)
            case "approve" | "reject" | "duplicate" | "early":
                self._review(run_id, name)
            case "cancel":
                self._request(run_id, "wait", {}, ("run.cancelled",))
                self._withheld += [(run_id, "first"), (run_id, "second")]
                if not self.held:
                    self.release()
            case "pause":
                # Resumed once it is told to be suspended.
                self._request(run_id, "count", {"steps": steps}, _COMPLETED)
                self._control(run_id, "pause", action="suspend")
            case "race":
                self._request(run_id, "count", {"steps": steps}, ("run.completed", "run.cancelled"))
                later = asyncio.get_running_loop().time() + self._random.uniform(0.3, 2.5)
                asyncio.get_running_loop().call_at(later, self._control, run_id, "first")
            case "unknown_type":
                self._request(run_id, "no_such_type", None, ("run.rejected",))
            case "nobody":
                self._verdicts[run_id] = True
                self._decide(run_id, f"{run_id}-0")
            case _:
                value, headers = self._random.choice(_GARBAGE)
                topic = self._random.choice(["runs", "approvals"])
                self._send(Sent(mark=run_id, topic=topic, kind="garbage"), value, headers)

    def _review(self, run_id: str, name: str) -> None:
        self._verdicts[run_id] = name != "reject"
        decisions = [f"{run_id}-{n}" for n in range(3 if name == "duplicate" else 1)]
        self._asked[run_id] = decisions
        if name == "early":
            self._asked[run_id] = []
            self._decide(run_id, decisions[0])
        self._request(run_id, "review", {"approved": self._verdicts[run_id]}, _COMPLETED)

    def _request(
        self, run_id: str, run_type: str, run_input: Any, ends: tuple[str, ...], *, by_http: bool = False
    ) -> None:
        event_id = f"{run_id}-request"
        data = {"run_id": run_id, "run_type": run_type, "input": run_input}
        sent = Sent(
            mark=event_id,
            topic="runs",
            kind="request",
            event_id=event_id,
            run_id=run_id,
            run_type=run_type,
            input=run_input,
            ends=ends,
        )
        if by_http:
            self._begin(sent, self._until_posted(sent, data))
        else:
            self._send(sent, data, {"ce_type": "towline.run.requested.v1"})

    def _decide(self, run_id: str, event_id: str) -> None:
        data = {"run_id": run_id, "approval_id": "approval", "approved": self._verdicts[run_id]}
        self._command(run_id, "decision", "approvals", event_id, data, "approval.decided")

    def _control(self, run_id: str, which: str, *, action: ControlKind = "cancel") -> None:
        data = {"run_id": run_id, "action": action, "reason": which}
        self._command(run_id, action, "runs", f"{run_id}-{which}", data, "run.control")

    def _command(
        self, run_id: str, kind: Kind, topic: str, event_id: str, data: dict[str, Any], event_type: str
    ) -> None:
        sent = Sent(mark=event_id, topic=topic, kind=kind, event_id=event_id, run_id=run_id)
        self._send(sent, data, {"ce_type": f"towline.{event_type}.v1"})

    def _send(self, sent: Sent, value: dict[str, Any] | bytes | None, headers: dict[str, str]) -> None:
        all_headers = {
            "ce_specversion": "1.0",
            "ce_id": sent.event_id or sent.mark,
            "ce_source": "chaos",
            "ce_type": "towline.run.requested.v1",
            "content-type": "application/json",
            MARK: sent.mark,
            **headers,
        }
        body = json.dumps(value).encode() if isinstance(value, dict) else value
        self._begin(sent, self._until_acknowledged(sent, body, all_headers))

    def _begin(self, sent: Sent, sending: Coroutine[Any, Any, None]) -> None:
        self.sent[sent.mark] = replace(sent, acknowledged=False)
        task = asyncio.create_task(sending)
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)

    async def _until_acknowledged(self, sent: Sent, body: bytes | None, headers: dict[str, str]) -> None:
        while True:
            try:
                await self._producer.send_and_wait(
                    f"{self.kafka.topic_prefix}{sent.topic}",
                    body,
                    key=(sent.run_id or sent.mark).encode(),
                    headers=[(name, text.encode()) for name, text in headers.items()],
                )
            except KafkaError:
                await asyncio.sleep(0.5)
            else:
                self.sent[sent.mark] = sent
                return

    async def _until_posted(self, sent: Sent, data: dict[str, Any]) -> None:
        # What says that a repeat of a post is the same request.
        headers = {"Idempotency-Key": sent.mark}
        while True:
            try:
                answer = await self._http.post("/runs", json=data, headers=headers)
            except httpx.HTTPError:
                await asyncio.sleep(0.5)
                continue
            if answer.status_code == httpx.codes.ACCEPTED:
                self.sent[sent.mark] = sent
                return
            await asyncio.sleep(0.5)

    # What comes back

    async def _read(self) -> None:
        while True:
            try:
                batches = await self._consumer.getmany(timeout_ms=500)
            except KafkaError:
                await asyncio.sleep(0.5)
                continue
            for partition, found in batches.items():
                topic = partition.topic.removeprefix(self.kafka.topic_prefix)
                for raw in found:
                    record = _record(topic, raw, self.kafka.topic_prefix)
                    self.records.append(record)
                    self._react(record)

    def _react(self, record: Record) -> None:
        if record.topic == "dead-letters":
            self._lettered.add(record.headers.get(MARK, ""))
        if record.topic not in ("events", "results") or record.id in self._seen:
            return
        self._seen.add(record.id)
        run_id = record.data["run_id"]
        if record.type in OUTCOMES:
            self._ended.add(run_id)
        if record.type == "run.cancelled":
            self._cancelled.add(run_id)
        if record.type == "run.started":
            self._started.add(run_id)
        if record.topic == "events":
            self._answered.add(record.id.rpartition("/")[2])
        if "/control/suspend/done/" in record.id:
            self._control(run_id, "unpause", action="resume")
        if record.type == "approval.requested":
            for event_id in self._asked.pop(run_id, []):
                self._withheld.append((run_id, event_id))
            if not self.held:
                self.release()
        if record.type.endswith(".refused") and record.data["reason"] == "unknown_run":
            self._once_more(record, run_id)

    def _once_more(self, record: Record, run_id: str) -> None:
        """A command that overtook its request for longer than the grace: whoever sent it sends another."""
        if f"{run_id}-request" not in self.sent or record.data.get("action") in ("suspend", "resume"):
            return
        command = record.id.rpartition("/")[2]
        if record.type == "approval.refused":
            self._decide(run_id, f"{command}x")
        else:
            self._control(run_id, f"{command.rpartition('-')[2]}x")

    def release(self) -> None:
        """Decide and cancel what was held back, and nothing is held back any more."""
        self.held = False
        for run_id, what in self._withheld:
            if run_id in self._verdicts:
                self._decide(run_id, what)
            else:
                self._control(run_id, what)
        self._withheld.clear()

    def in_flight(self) -> int:
        """Runs that were asked for and have no outcome yet."""
        return sum(s.kind == "request" and s.run_id not in self._ended for s in self.sent.values())

    async def all_wait(self, *, within_s: float) -> bool:
        """Wait until every run is started, and every one that asks has asked; False: not `within_s`."""
        deadline = asyncio.get_running_loop().time() + within_s
        wanted = {sent.run_id for sent in self.sent.values() if sent.kind == "request"}
        while self._asked or not wanted <= self._started:
            if asyncio.get_running_loop().time() > deadline:
                return False
            await asyncio.sleep(0.1)
        return True

    def open(self) -> list[str]:
        """What has not come to its end yet."""
        return [sent.mark for sent in list(self.sent.values()) if not self._is_settled(sent)]

    def _is_settled(self, sent: Sent) -> bool:
        if not sent.acknowledged:
            return False
        match sent.kind:
            case "request":
                return sent.run_id in self._ended
            case "garbage":
                return sent.mark in self._lettered
            case _:
                return sent.event_id in self._answered or (
                    sent.kind == "cancel" and sent.run_id in self._cancelled
                )

    async def settled(self, *, within_s: float, quiet_s: float = 3.0) -> bool:
        """Wait until nothing is open and nothing more comes for `quiet_s`; False: not `within_s`."""
        loop = asyncio.get_running_loop()
        deadline, seen, since = loop.time() + within_s, -1, loop.time()
        while loop.time() < deadline:
            if self.open() or len(self.records) != seen:
                seen, since = len(self.records), loop.time()
            elif loop.time() - since >= quiet_s:
                return True
            await asyncio.sleep(0.1)
        return False

    def of(self, *topics: str) -> list[Record]:
        """What was read of these topics, each record once, in the order of their partitions."""
        found = {(r.topic, r.partition, r.offset): r for r in self.records if r.topic in topics}
        return [found[place] for place in sorted(found)]

    def tally(self) -> Counter[str]:
        """How many outcomes of each type."""
        outcomes = {r.id: r.type for r in self.of("results")}
        return Counter(outcomes.values())


def _record(topic: str, raw: ConsumerRecord, prefix: str) -> Record:
    headers = {name: value.decode("utf-8", "replace") for name, value in raw.headers}
    if topic == "runs" and headers.get("ce_source") == _RELAY_SOURCE:
        # Posted by HTTP: it can't carry a mark.
        headers.setdefault(MARK, f"{json.loads(raw.value)['run_id']}-request")
    if ORIGIN_TOPIC in headers:
        headers[ORIGIN_TOPIC] = headers[ORIGIN_TOPIC].removeprefix(prefix)
    return Record(
        topic=topic,
        partition=raw.partition,
        offset=raw.offset,
        timestamp_ms=raw.timestamp,
        value=raw.value,
        headers=headers,
    )
