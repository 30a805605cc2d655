"""Configuration of the local broker, and the smallest question to ask one. Pure."""

from __future__ import annotations

import base64
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Final
from uuid import UUID

JVM_OPTIONS: Final = (
    "-Xms64m",
    "-Xmx256m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-XX:-UsePerfData",
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
    # Warns of every restart that follows a kill, then goes on.
    "-Dorg.slf4j.simpleLogger.log.org.apache.kafka.storage.internals.log.LogLoader=error",
)
"""Small heap and quick start: 0.6 s to ready with a CDS archive, 180 MB."""

_SETTINGS: Final[Mapping[str, str]] = {
    "process.roles": "broker,controller",
    "node.id": "1",
    "controller.listener.names": "CONTROLLER",
    "inter.broker.listener.name": "PLAINTEXT",
    "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
    "auto.create.topics.enable": "false",
    "offsets.topic.replication.factor": "1",
    "offsets.topic.num.partitions": "1",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "transaction.state.log.num.partitions": "1",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    "share.coordinator.state.topic.num.partitions": "1",
    "group.initial.rebalance.delay.ms": "0",
    # Lets a consumer choose to be missed soon after it was killed.
    "group.min.session.timeout.ms": "1000",
    "num.network.threads": "2",
    "num.io.threads": "2",
    "background.threads": "2",
    "log.cleaner.dedupe.buffer.size": "16777216",
    # After kill -9 the old registration must expire first: 2 s to ready instead of 11.
    "broker.session.timeout.ms": "1500",
    "broker.heartbeat.interval.ms": "300",
}


def server_properties(*, port: int, controller_port: int, log_dir: Path) -> str:
    """The text of ``server.properties`` of a single node on 127.0.0.1."""
    addresses = {
        "controller.quorum.voters": f"1@127.0.0.1:{controller_port}",
        "listeners": f"PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}",
        "advertised.listeners": f"PLAINTEXT://127.0.0.1:{port}",
        "log.dirs": str(log_dir),
    }
    return "".join(f"{name}={_escaped(value)}\n" for name, value in (_SETTINGS | addresses).items())


def _escaped(value: str) -> str:
    """`value` as Java reads it: a properties file is Latin-1, any other character a UTF-16 escape."""
    units = struct.iter_unpack(">H", value.replace("\\", "\\\\").encode("utf-16-be", "surrogatepass"))
    return "".join(chr(unit) if unit < 128 else f"\\u{unit:04x}" for (unit,) in units)


def kafka_uuid(value: UUID) -> str:
    """`value` as Kafka writes ids: 22 characters of URL-safe base64."""
    return base64.urlsafe_b64encode(value.bytes).rstrip(b"=").decode()


def meta_properties(*, cluster_id: str, directory_id: str) -> str:
    """The text of a formatted folder's ``meta.properties``."""
    return f"cluster.id={cluster_id}\ndirectory.id={directory_id}\nnode.id=1\nversion=1\n"


_API_VERSIONS: Final = 18
_CORRELATION_ID: Final = 20_261
_CLIENT_ID: Final = b"towline-dev"


def api_versions_request() -> bytes:
    """An ApiVersions request, version 0, as it goes over the wire."""
    body = struct.pack(">hhih", _API_VERSIONS, 0, _CORRELATION_ID, len(_CLIENT_ID)) + _CLIENT_ID
    return struct.pack(">i", len(body)) + body


ANSWER_BYTES: Final = 10
"""As much of the answer as `is_api_versions_answer` wants: size, correlation id, error code."""


def is_api_versions_answer(answer: bytes) -> bool:
    """Whether `answer` begins like a broker's answer, without an error."""
    if len(answer) < ANSWER_BYTES:
        return False
    _, correlation_id, error = struct.unpack_from(">iih", answer)
    return correlation_id == _CORRELATION_ID and error == 0
