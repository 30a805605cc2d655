"""`towline worker` as processes of its own: several under one, and how they end."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from random import Random

from durabletask.azuremanaged.client import DurableTaskSchedulerClient
from pydantic import SecretStr
from tests.waiting import eventually_async

from towline.contracts.payloads import open_payload_store
from towline.contracts.payloads.durable_store import SharedPayloadStore
from towline.contracts.settings import KafkaSettings, PayloadSettings

APP = "tests.integration.worker.apps:setup_worker"


@contextmanager
def worker(
    kafka: KafkaSettings, valkey: str, scheduler: str, settings: Mapping[str, str], *options: str
) -> Generator[subprocess.Popen[bytes]]:
    """A worker of the tests' app; killed if it is left."""
    hub = kafka.topic_prefix.strip(".")
    given = {
        "TOWLINE_KAFKA_BOOTSTRAP": kafka.bootstrap,
        "TOWLINE_KAFKA_TOPIC_PREFIX": kafka.topic_prefix,
        "TOWLINE_REDIS_URL": valkey,
        "TOWLINE_SCHEDULER_ADDRESS": scheduler,
        "TOWLINE_SCHEDULER_TASKHUB": hub,
    }
    command = (sys.executable, "-m", "towline.worker", "--app", APP, *options)
    process = subprocess.Popen(command, env={**os.environ, **given, **settings})
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def free_ports(count: int) -> int:
    """The first of so many ports in a row that nobody listens on."""
    for first in Random().sample(range(20_000, 30_000), 100):
        taken = [socket.socket() for _ in range(count)]
        try:
            for number, one in enumerate(taken):
                one.bind(("127.0.0.1", first + number))
        except OSError:
            continue
        finally:
            for one in taken:
                one.close()
        return first
    raise AssertionError("no ports in a row are free")


def answer_of(url: str) -> str:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return f"{answer.status}"
    except urllib.error.HTTPError as error:
        return f"{error.code} {error.read().decode()}"
    except OSError as error:
        return str(error)


async def test_several_processes_are_ready_also_at_an_address_without_a_host(
    kafka_settings: KafkaSettings, valkey: str, scheduler: str
) -> None:
    port = free_ports(3)
    settings = {"TOWLINE_WORKER_HTTP_LISTEN": f":{port}"}

    def ready() -> str:
        return answer_of(f"http://127.0.0.1:{port}/readyz")

    with worker(kafka_settings, valkey, scheduler, settings, "--processes", "2") as process:
        await eventually_async(lambda: asyncio.to_thread(lambda: ready() == "200"), every_s=0.1)
        process.terminate()
        await eventually_async(lambda: process.poll() == 0)


def put_a_pipe_in_its_place(folder: Path) -> None:
    """Whoever opens the only payload waits for a writer, as for a file server that is gone."""
    (payload,) = folder.glob("*/*.gz")
    payload.unlink()
    os.mkfifo(payload)


async def test_a_payload_folder_that_hangs_does_not_hold_the_worker_up_at_its_end(
    kafka_settings: KafkaSettings, valkey: str, scheduler: str, tmp_path: Path
) -> None:
    url, port = f"file://{tmp_path}", free_ports(1)
    settings = {
        "TOWLINE_PAYLOADS_URL": url,
        "TOWLINE_WORKER_HTTP_LISTEN": f"127.0.0.1:{port}",
        "TOWLINE_WORKER_STOP_TIMEOUT_S": "0.5",
    }
    store = open_payload_store(PayloadSettings(url=SecretStr(url)))
    assert store is not None
    client = DurableTaskSchedulerClient(
        host_address=scheduler,
        secure_channel=False,
        taskhub=kafka_settings.topic_prefix.strip("."),
        token_credential=None,
        payload_store=SharedPayloadStore(store, threshold_bytes=100),
    )
    await asyncio.to_thread(lambda: client.schedule_new_orchestration("hangs", input="x" * 1000))
    client.close()
    put_a_pipe_in_its_place(tmp_path)

    def turn_is_in_hand() -> bool:
        with (
            suppress(OSError),
            urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer,
        ):
            return re.search(rb"^towline_worker_in_hand\S* 1(\.0)?$", answer.read(), re.MULTILINE) is not None
        return False

    with worker(kafka_settings, valkey, scheduler, settings) as process:
        await eventually_async(lambda: asyncio.to_thread(turn_is_in_hand), every_s=0.1)
        process.terminate()
        await eventually_async(lambda: process.poll() == 0, timeout_s=20)
