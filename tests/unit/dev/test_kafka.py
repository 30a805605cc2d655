"""The broker part, without a broker."""

from __future__ import annotations

import logging
import socket
from pathlib import Path

import pytest

from towline.dev import kafka
from towline.dev.kafka_distribution import KafkaDistribution


def test_classes_that_cannot_be_archived_cost_speed_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Somebody takes the port between its choice and the start, which takes a while at the first time."""
    strangers: list[socket.socket] = []

    def prepare(part: kafka.KafkaPart) -> None:
        strangers.append(socket.create_server(("127.0.0.1", part.port)))

    monkeypatch.setattr(kafka.KafkaPart, "prepare", prepare)
    distribution = KafkaDistribution(tmp_path / "java", tmp_path, tmp_path, tmp_path / "archive.jsa")

    with caplog.at_level(logging.WARNING):
        kafka._archive_classes(distribution, tmp_path)  # pyright: ignore[reportPrivateUsage]

    (stranger,) = strangers
    stranger.close()
    assert [record.message for record in caplog.records] == ["kafka.archive_failed"]
    assert not distribution.archive.exists()
