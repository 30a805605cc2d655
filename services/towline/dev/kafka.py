"""A single Kafka node (KRaft) on 127.0.0.1."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from uuid import uuid4

from towline.dev import kafka_config, kafka_distribution, ports
from towline.dev.kafka_distribution import KafkaDistribution
from towline.dev.part import PROBE_TIMEOUT_S, Part
from towline.dev.process import LineSink


class KafkaPart(Part):
    """Apache Kafka in KRaft mode: real broker and controller in one process.

    Data survive `kill` and a later start on the same folder, also on other ports.
    """

    ready_timeout_s = 60.0

    def __init__(
        self,
        *,
        data: Path,
        port: int | None = None,
        sink: LineSink | None = None,
        jvm: Sequence[str] = (),
        distribution: KafkaDistribution | None = None,
    ) -> None:
        """Make it, without starting it.

        Args:
            data: Its folder.
            port: Wanted port of the broker; another is taken if it is not free. Default: any free one.
            sink: See `Part`.
            jvm: More options for Java, for example ``-Xmx1g``.
            distribution: The Kafka to run; default: the cached one, fetched if need be.
        """
        super().__init__("kafka", data=data.absolute(), sink=sink)
        self.port = ports.lease(port)
        self._controller_port = ports.lease()
        self._jvm = tuple(jvm)
        self._distribution = distribution

    @property
    def bootstrap(self) -> str:
        """host:port."""
        return f"127.0.0.1:{self.port}"

    @property
    def addresses(self) -> Mapping[str, str]:
        """`TOWLINE_KAFKA_BOOTSTRAP`."""
        return {"TOWLINE_KAFKA_BOOTSTRAP": self.bootstrap}

    def own_ports(self) -> Sequence[int]:
        """Broker and controller."""
        return (self.port, self._controller_port)

    def prepare(self) -> None:
        """Fetch Kafka if the cache has none; format the data folder if it is new."""
        super().prepare()
        if self._distribution is None:
            self._distribution = kafka_distribution.resolve()
        log_dir = self.data / "log"
        marker = log_dir / "meta.properties"
        if marker.exists():
            return
        # The marker comes last: a copy that was cut short is made again.
        shutil.copytree(
            self._distribution.formatted,
            log_dir,
            ignore=shutil.ignore_patterns(marker.name),
            copy_function=shutil.copyfile,
            dirs_exist_ok=True,
        )
        new = self.data / "meta.properties.new"
        new.write_text(
            kafka_config.meta_properties(
                cluster_id=kafka_config.kafka_uuid(uuid4()), directory_id=kafka_config.kafka_uuid(uuid4())
            )
        )
        new.replace(marker)

    def command(self) -> Sequence[str]:
        """Java with Kafka's main class."""
        assert self._distribution is not None, "prepare() comes first"
        properties = self.data / "server.properties"
        properties.write_text(
            kafka_config.server_properties(
                port=self.port, controller_port=self._controller_port, log_dir=self.data / "log"
            )
        )
        return self._distribution.server_command(properties, jvm=self._jvm)

    def probe(self) -> bool:
        """Whether the broker answers ApiVersions and our process lives."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=PROBE_TIMEOUT_S) as connection:
                connection.sendall(kafka_config.api_versions_request())
                answer = b""
                while len(answer) < kafka_config.ANSWER_BYTES:
                    if not (piece := connection.recv(1024)):
                        return False
                    answer += piece
        except OSError:
            return False
        return kafka_config.is_api_versions_answer(answer) and self.is_running

    def _append_to_log(self, name: str, line: str) -> None:
        del name  # `data/log` is Kafka's own folder
        with (self.data / "output.log").open("a", encoding="utf-8") as log:
            log.write(line + "\n")
