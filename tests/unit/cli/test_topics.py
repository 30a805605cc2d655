"""Reading topics for a person, from a broker that is slow or large."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import KafkaError, TopicAuthorizationFailedError
from typer.testing import CliRunner

from towline.cli import following, topics
from towline.cli.app import app
from towline.cli.errors import CliError
from towline.cli.output import Printer
from towline.contracts.settings import KafkaSettings

AT = TopicPartition("towline.events", 0)
BATCH = 1_000


class Record:
    """A record of some other run."""

    topic, partition, headers, value = AT.topic, AT.partition, (), b"{}"
    key = b"other-run"

    def __init__(self, offset: int) -> None:
        self.offset = offset


class Source:
    """As much of a consumer as `read` uses: a topic of `count` records, a batch each `pause_s`."""

    def __init__(self, count: int, pause_s: float = 0) -> None:
        self.count, self._pause_s, self._at = count, pause_s, 0
        self.made: list[weakref.ref[Record]] = []
        self.most_kept = 0

    async def position(self, _: TopicPartition) -> int:
        return self._at

    async def beginning_offsets(self, _: object) -> dict[TopicPartition, int]:
        return {AT: 0}

    async def end_offsets(self, _: object) -> dict[TopicPartition, int]:
        return {AT: self.count}

    def assign(self, _: object) -> None: ...

    def seek(self, *_: object) -> None: ...

    async def getmany(self, *, timeout_ms: int, max_records: int) -> dict[TopicPartition, list[Record]]:
        gc.collect()
        self.most_kept = max(self.most_kept, sum(made() is not None for made in self.made))
        if self._at == self.count:
            await asyncio.sleep(timeout_ms / 1000)
            return {}
        await asyncio.sleep(self._pause_s)
        records = [Record(self._at + number) for number in range(min(BATCH, self.count - self._at))]
        self.made = [weakref.ref(record) for record in records] + self.made
        self._at += len(records)
        return {AT: records}


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes `read` read from a source."""

    async def partitions_of(*_: object) -> list[TopicPartition]:
        return [AT]

    def use(source: Source) -> Source:
        @asynccontextmanager
        async def reader(_: KafkaSettings) -> AsyncGenerator[tuple[Any, None]]:
            yield source, None

        monkeypatch.setattr(topics, "reader", reader)
        monkeypatch.setattr(topics, "partitions_of", partitions_of)
        return source

    return use


async def test_one_runs_events_are_looked_for_without_keeping_everybody_elses(serve: Any) -> None:
    source = serve(Source(10 * BATCH))

    events = topics.read(KafkaSettings(), (AT.topic,), last=None, follow=False, run_id="r1")

    assert [event async for event in events] == []
    assert source.most_kept <= 2 * BATCH


async def test_a_history_that_takes_long_counts_neither_as_silence_nor_against_the_run(
    serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = serve(Source(10 * BATCH, pause_s=0.05))
    monkeypatch.setattr(topics, "_SILENCE_TIMEOUT_S", 0.2, raising=False)
    monkeypatch.setattr(following, "UNKNOWN_RUN_GRACE_S", 0.3)
    monkeypatch.setenv("TOWLINE_RELAY_URL", "none")

    with pytest.raises(CliError, match=r"run r1 has no event after 0\.3 s"):
        await following.follow("r1", KafkaSettings(), Printer(as_json=False))

    assert await source.position(AT) == source.count, "it gave up before it had read all there is"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (TopicAuthorizationFailedError(AT.topic), "the broker refuses this user"),
        (KafkaError("no such thing"), "see the broker's log"),
    ],
)
def test_a_topic_that_may_be_seen_and_not_read_is_one_line(serve: Any, error: KafkaError, said: str) -> None:
    """Kafka's Describe without its Read: the broker says so with the first fetch only."""
    source = serve(Source(BATCH))

    async def getmany(**_: object) -> None:
        raise error

    source.getmany = getmany

    done = CliRunner().invoke(app, ["results"])

    assert (done.exit_code, len(done.stderr.splitlines())) == (1, 1), done.output
    assert said in done.stderr
