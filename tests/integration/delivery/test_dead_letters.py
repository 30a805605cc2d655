"""`towline dead-letters` on a real Kafka, as its own process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from uuid import uuid4

import pytest
from aiokafka import AIOKafkaConsumer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from tests.unit.delivery.records import record
from tests.waiting import eventually_async

from towline.contracts.producer import EventProducer
from towline.contracts.settings import KafkaSettings
from towline.delivery import DeadLetter
from towline.delivery.dead_letters import DeadLetterWriter


@pytest.fixture
def towline(kafka_settings: KafkaSettings):
    """Run `towline dead-letters …`."""
    environment = {
        **os.environ,
        "TOWLINE_KAFKA_BOOTSTRAP": kafka_settings.bootstrap,
        "TOWLINE_KAFKA_TOPIC_PREFIX": kafka_settings.topic_prefix,
        "COLUMNS": "80",
    }

    def run(*arguments: str) -> tuple[int, str]:
        command = [sys.executable, "-m", "towline.cli", "dead-letters", *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
        return done.returncode, done.stdout + done.stderr

    return run


@pytest.fixture
async def letters(kafka_settings: KafkaSettings):
    """Three dead letters of the topic ``runs``: r-1 twice, r-2 once."""
    async with EventProducer(kafka_settings) as producer:
        write = DeadLetterWriter(producer, kafka_settings.topics.dead_letters)
        for offset, key in ((3, b"r-1"), (5, b"r-2"), (9, b"r-1")):
            original = record(
                offset,
                topic=kafka_settings.topics.runs,
                partition=1,
                key=key,
                value=b"{broken \x1b[31m",
                headers=(("ce_id", f"e-{offset}".encode()), ("traceparent", b"00-1-2-01"), ("x-null", None)),
            )
            await write(original, DeadLetter("invalid_json", "value: is no JSON"))
            await write(original, DeadLetter("invalid_json", "value: is no JSON"))  # as after a crash
    return [f"{kafka_settings.topics.runs}/1/{offset}" for offset in (3, 5, 9)]


async def read_all(kafka: KafkaSettings, topic: str, count: int):
    consumer = AIOKafkaConsumer(topic, bootstrap_servers=kafka.bootstrap, auto_offset_reset="earliest")
    await consumer.start()
    found = [await consumer.getone() for _ in range(count)]
    await consumer.stop()
    return found


def listed(towline, *arguments: str) -> list[dict[str, object]]:
    code, text = towline("list", "--json", *arguments)
    assert code == 0, text
    return [json.loads(line) for line in text.splitlines()]


async def test_list_and_show_tell_what_and_why(towline, letters):
    assert [letter["id"] for letter in listed(towline)] == letters
    assert [letter["id"] for letter in listed(towline, "--filter", "run=r-2")] == [letters[1]]
    code, table = towline("list")
    assert code == 0
    assert all(letter_id in table for letter_id in letters), "whole, to be given to the other commands"
    code, shown = towline("show", letters[1])
    assert code == 0
    assert "value: is no JSON" in shown
    assert "{broken \\x1b[31m" in shown, "control characters are escaped"
    assert "traceparent: 00-1-2-01" in shown


async def test_replay_keeps_key_headers_partition_and_order_and_marks(towline, letters, kafka_settings):
    code, text = towline("replay", "--filter", "run=r-1", "--dry-run")
    assert (code, text.splitlines()[-1]) == (0, "2 would be replayed")
    code, text = towline("replay", letters[2], letters[0])
    assert (code, text.strip()) == (0, "2 replayed")
    first, second = await read_all(kafka_settings, kafka_settings.topics.runs, 2)
    for replayed, origin, event_id in ((first, letters[0], b"e-3"), (second, letters[2], b"e-9")):
        assert (replayed.partition, replayed.key, replayed.value) == (1, b"r-1", b"{broken \x1b[31m")
        assert replayed.headers == (
            ("ce_id", event_id),
            ("traceparent", b"00-1-2-01"),
            ("x-null", None),
            ("towline_replay_of", origin.encode()),
            ("towline_replay_count", b"1"),
        )
    assert [letter["id"] for letter in listed(towline)] == [letters[1]]
    states = [letter["state"] for letter in listed(towline, "--all")]
    assert states == ["replayed", "open", "replayed"]
    code, text = towline("replay", letters[0])
    assert (code, text.strip()) == (1, f"error: {letters[0]} was replayed already")


async def test_replay_to_a_topic_that_was_made_anew_with_fewer_partitions_goes_by_the_key(
    towline, letters, kafka_settings
):
    runs = kafka_settings.topics.runs
    await made_anew(kafka_settings, runs, partitions=1)
    code, text = towline("replay", "--all")
    assert (code, text.strip()) == (0, "3 replayed")
    found = await read_all(kafka_settings, runs, 3)
    assert [(one.partition, one.key) for one in found] == [(0, b"r-1"), (0, b"r-2"), (0, b"r-1")]
    assert listed(towline) == []


async def made_anew(kafka: KafkaSettings, topic: str, *, partitions: int) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka.bootstrap)
    await admin.start()
    try:
        await admin.delete_topics([topic])

        async def created() -> bool:
            answer = await admin.create_topics([NewTopic(topic, partitions, 1)])
            return answer.topic_errors[0][1] == 0

        await eventually_async(created)
    finally:
        await admin.close()


async def test_discard_takes_letters_off_the_list_and_keeps_the_note(towline, letters):
    code, text = towline("discard", "--all", "--note", "a test's rubbish")
    assert (code, text.strip()) == (0, "3 discarded")
    assert listed(towline) == []
    assert {letter["note"] for letter in listed(towline, "--all")} == {"a test's rubbish"}


async def test_what_was_replayed_too_often_is_refused_and_nothing_else_is_replayed(towline, kafka_settings):
    async with EventProducer(kafka_settings) as sender:
        write = DeadLetterWriter(sender, kafka_settings.topics.dead_letters)
        for offset, count in ((1, b"0"), (2, b"3")):
            one = record(offset, topic=kafka_settings.topics.runs, headers=(("towline_replay_count", count),))
            await write(one, DeadLetter("invalid_json", "no"))
    code, text = towline("replay", "--all")
    assert code == 1
    assert "/0/2: was replayed 3 times and failed each time" in text
    assert [letter["state"] for letter in listed(towline, "--all")] == ["open", "open"]


async def test_mistakes_get_one_line_that_names_the_fix(towline, letters):
    for arguments, expected in (
        (("replay",), "error: give ids, --filter or --all"),
        (("list", "--filter", "colour=red"), "give FIELD=PATTERN"),
        (("show", "x"), "give TOPIC/PARTITION/OFFSET"),
        (("show", f"t{uuid4().hex}/0/1"), "no dead letter"),
    ):
        code, text = towline(*arguments)
        assert code == 1
        assert expected in text
        assert "Traceback" not in text


@pytest.mark.parametrize("where", ["key", "headers"])
async def test_a_record_with_a_key_or_headers_too_large_for_the_dead_letters_is_put_aside_without(
    towline, kafka_settings, where
):
    huge = b"x" * 3_000_000
    original = record(
        4,
        topic=kafka_settings.topics.runs,
        key=huge if where == "key" else b"r-1",
        headers=(("ce_id", b"e-4"), *((("huge", huge),) if where == "headers" else ())),
    )
    async with EventProducer(kafka_settings, max_record_bytes=8_000_000) as producer:
        write = DeadLetterWriter(producer, kafka_settings.topics.dead_letters)
        await write(original, DeadLetter("no_headers", "no"))
    (letter,) = listed(towline)
    assert (letter["event"], letter["reason"]) == ("e-4", "no_headers")
    assert letter["key"] == ("" if where == "key" else "r-1")
    code, text = towline("replay", "--all")
    assert code == 1
    assert "too large" in text
