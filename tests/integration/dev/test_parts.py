"""Single parts: readiness, addresses that stay, data that survive, nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import redis
import trustme
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from tests.waiting import eventually

from towline.contracts.kafka import ensure_topics
from towline.contracts.settings import KafkaSettings, SchedulerSettings
from towline.dev import KafkaPart, SchedulerPart, ValkeyPart
from towline.dev.errors import AddressInUseError
from towline.dev.process import start_time
from towline.testing import TestKitError, record


async def test_kafka_has_its_address_and_its_records_after_a_kill(tmp_path: Path) -> None:
    with KafkaPart(data=tmp_path / "kafka") as kafka:
        settings = KafkaSettings(bootstrap=kafka.bootstrap)
        await ensure_topics(settings, partitions=1)
        async with AIOKafkaProducer(
            bootstrap_servers=kafka.bootstrap, acks="all", enable_idempotence=True
        ) as producer:
            await producer.send_and_wait(settings.topics.runs, b"kept")
        before = kafka.bootstrap
        kafka.kill()
        assert not kafka.is_running
        kafka.start()
        assert kafka.bootstrap == before
        async with AIOKafkaConsumer(
            settings.topics.runs, bootstrap_servers=kafka.bootstrap, auto_offset_reset="earliest"
        ) as consumer:
            assert (await consumer.getone()).value == b"kept"


def test_a_folder_may_have_any_name(tmp_path: Path) -> None:
    folder = tmp_path / "zoë's, stack 🚂"
    with KafkaPart(data=folder / "kafka"), ValkeyPart(data=folder / "valkey"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


def test_valkey_has_its_address_and_its_data_after_a_clean_stop(tmp_path: Path) -> None:
    with ValkeyPart(data=tmp_path / "valkey") as valkey:
        redis.Redis.from_url(valkey.url).set("key", "kept")
        before = valkey.url
        valkey.restart()
        assert valkey.url == before
        assert redis.Redis.from_url(valkey.url).get("key") == b"kept"


def test_the_scheduler_is_reached_in_plain_text_though_the_shell_has_a_certificate_for_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = trustme.CA().issue_cert("scheduler.example.org")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "tls.crt")
    certificate.private_key_pem.write_to_path(tmp_path / "tls.key")
    monkeypatch.setenv("TOWLINE_SCHEDULER_TLS_CERT", str(tmp_path / "tls.crt"))
    monkeypatch.setenv("TOWLINE_SCHEDULER_TLS_KEY", str(tmp_path / "tls.key"))

    with (
        SchedulerPart(data=tmp_path / "scheduler") as scheduler,
        pytest.raises(TestKitError, match="has no run no-such-run"),
    ):
        record(SchedulerSettings(address=scheduler.address), "no-such-run")


def test_a_port_taken_by_a_stranger_is_named(tmp_path: Path) -> None:
    with ValkeyPart(data=tmp_path / "one") as one:
        other = ValkeyPart(data=tmp_path / "two")
        other.port = one.port
        with pytest.raises(AddressInUseError, match=f"valkey: 127.0.0.1:{one.port} is taken"):
            other.start()


_PARENT = """
import sys, time
from pathlib import Path
from towline.dev import ValkeyPart
part = ValkeyPart(data=Path(sys.argv[1])).start()
print(part.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of its parent's death")
def test_a_part_dies_with_a_killed_parent(tmp_path: Path) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", _PARENT, str(tmp_path / "valkey")], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    with parent, parent.stdout:
        part = int(parent.stdout.readline())
        assert start_time(part) is not None
        parent.kill()
        eventually(lambda: start_time(part) is None)


def test_what_a_killed_parent_left_is_stopped_at_the_next_start(tmp_path: Path) -> None:
    folder = tmp_path / "valkey"
    first = ValkeyPart(data=folder).start()
    try:
        left = first.pid
        second = ValkeyPart(data=folder, port=first.port)  # as after a restart on the same folder
        with second:
            assert first.exit_status() is not None
            assert second.pid != left
    finally:
        first.stop()


def test_a_stranger_with_a_recorded_pid_is_left_alone(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "60"]) as stranger:
        try:
            folder = tmp_path / "valkey"
            folder.mkdir()
            (folder / "pid").write_text(f'{{"pid": {stranger.pid}, "start_time": "1"}}')
            with ValkeyPart(data=folder):
                assert stranger.poll() is None
        finally:
            os.kill(stranger.pid, signal.SIGKILL)
