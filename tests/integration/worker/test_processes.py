"""`towline worker` as processes of its own: several under one, and how they end."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from random import Random

from tests.waiting import eventually_async

from towline.contracts.settings import KafkaSettings

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
