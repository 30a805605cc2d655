"""A single Kafka node (KRaft) on 127.0.0.1."""

from __future__ import annotations

import asyncio
import logging
import shutil
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final
from uuid import uuid4

from aiokafka.errors import KafkaError

from towline.dev import kafka_config, kafka_distribution, ports
from towline.dev.errors import DevError
from towline.dev.kafka_distribution import KafkaDistribution
from towline.dev.part import PROBE_TIMEOUT_S, Part
from towline.dev.process import LineSink

logger = logging.getLogger(__name__)

_FIRST_STEPS_TIMEOUT_S: Final = 60.0


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
            self._distribution = kafka_distribution.resolve(_archive_classes)
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

    def work_folder(self) -> Path:
        """Its data folder, so that ``log.dirs`` needs no path: Kafka takes a comma in one for two folders."""
        return self.data

    def command(self) -> Sequence[str]:
        """Java with Kafka's main class."""
        assert self._distribution is not None, "prepare() comes first"
        properties = self.data / "server.properties"
        properties.write_text(
            kafka_config.server_properties(
                port=self.port, controller_port=self._controller_port, log_dir=Path("log")
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


def _archive_classes(distribution: KafkaDistribution, work: Path) -> None:
    """Run a broker once so that Java writes down the classes it loaded. A failure costs speed only."""
    written = work / "classes.jsa"
    broker = KafkaPart(
        data=work / "kafka", distribution=distribution, jvm=(f"-XX:ArchiveClassesAtExit={written}",)
    )
    try:
        with broker:
            asyncio.run(_first_steps(broker.bootstrap))
            broker.stop(timeout_s=60.0)
        written.rename(distribution.archive)
    except (OSError, TimeoutError, KafkaError, DevError) as error:
        logger.warning("kafka.archive_failed", extra={"error": str(error)})
    finally:
        for port in broker.own_ports():
            ports.release(port)


async def _first_steps(bootstrap: str) -> None:
    """What every client does first, so that those classes are archived too."""
    from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
    from aiokafka.admin import AIOKafkaAdminClient, NewTopic

    topic = "archive"
    async with asyncio.timeout(_FIRST_STEPS_TIMEOUT_S):
        admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
        await admin.start()
        try:
            await admin.create_topics([NewTopic(topic, num_partitions=1, replication_factor=1)])
        finally:
            await admin.close()
        async with AIOKafkaProducer(bootstrap_servers=bootstrap, enable_idempotence=True) as producer:
            await producer.send_and_wait(topic, b"value", key=b"key")  # pyright: ignore[reportUnknownMemberType]
        async with AIOKafkaConsumer(
            topic, bootstrap_servers=bootstrap, group_id=topic, auto_offset_reset="earliest"
        ) as consumer:
            await consumer.getone()  # pyright: ignore[reportUnknownMemberType]
            await consumer.commit()  # pyright: ignore[reportUnknownMemberType]
