"""The broker's configuration and the readiness question."""

from __future__ import annotations

import struct
from pathlib import Path
from uuid import UUID

import pytest

from towline.dev import kafka_config


def test_the_configuration_names_both_listeners_and_the_folder() -> None:
    text = kafka_config.server_properties(port=1, controller_port=2, log_dir=Path("/data"))
    settings = dict(line.split("=", 1) for line in text.splitlines())
    assert settings["listeners"] == "PLAINTEXT://127.0.0.1:1,CONTROLLER://127.0.0.1:2"
    assert settings["advertised.listeners"] == "PLAINTEXT://127.0.0.1:1"
    assert settings["controller.quorum.voters"] == "1@127.0.0.1:2"
    assert settings["log.dirs"] == "/data"
    assert settings["auto.create.topics.enable"] == "false"


def test_a_folder_is_written_as_java_reads_it() -> None:
    log_dir = Path("/home/zoë/🚂/a\\b")
    text = kafka_config.server_properties(port=1, controller_port=2, log_dir=log_dir)
    assert "log.dirs=/home/zo\\u00eb/\\ud83d\\ude82/a\\\\b\n" in text
    assert text.isascii()


def test_ids_are_written_as_kafka_writes_them() -> None:
    assert kafka_config.kafka_uuid(UUID(int=0)) == "A" * 22


def test_the_request_says_how_long_it_is() -> None:
    request = kafka_config.api_versions_request()
    (size,) = struct.unpack_from(">i", request)
    assert size == len(request) - 4


@pytest.mark.parametrize(
    ("answer", "is_one"),
    [
        (struct.pack(">iih", 100, 20_261, 0), True),
        (struct.pack(">iih", 100, 20_261, 35), False),
        (struct.pack(">iih", 100, 1, 0), False),
        (b"HTTP/1.1 400 Bad Request", False),
        (b"", False),
    ],
)
def test_only_a_broker_without_an_error_is_ready(answer: bytes, is_one: bool) -> None:
    assert kafka_config.is_api_versions_answer(answer) is is_one
