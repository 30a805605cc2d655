"""Kafka, Valkey and scheduler that demand TLS and credentials, and the secrets to reach them with."""

from __future__ import annotations

import asyncio
import subprocess
import threading
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

import trustme
from cryptography.hazmat.primitives import serialization

from towline.dev import KafkaPart, SchedulerPart, ValkeyPart, kafka_config, kafka_distribution, ports

HOSTS = ("127.0.0.1", "localhost")
USER = "towline"


def marked(name: str) -> str:
    """A secret that is found again wherever it comes out."""
    return f"s3cret-{name}-{uuid4().hex}"


@dataclass
class Secrets:
    """Files under `folder`, and the marked secrets that must come out nowhere."""

    folder: Path
    kafka_password: str = field(default_factory=lambda: marked("kafka"))
    redis_password: str = field(default_factory=lambda: marked("redis"))
    scheduler_token: str = field(default_factory=lambda: marked("scheduler"))

    def __post_init__(self) -> None:
        self.folder.mkdir()
        authority = trustme.CA()
        self.authority = self.folder / "ca.pem"
        authority.cert_pem.write_to_path(self.authority)
        for name in ("server", "client"):
            issued = authority.issue_cert(*HOSTS, common_name=name)
            key = serialization.load_pem_private_key(issued.private_key_pem.bytes(), None)
            # Kafka reads keys of this form only.
            pkcs8 = key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
            chain = b"".join(blob.bytes() for blob in issued.cert_chain_pems)
            (self.folder / f"{name}.key").write_bytes(pkcs8)
            (self.folder / f"{name}.crt").write_bytes(chain)
            (self.folder / f"{name}.pem").write_bytes(pkcs8 + chain)
        self.file("kafka_password", self.kafka_password)
        self.file("scheduler_token", self.scheduler_token)

    def file(self, name: str, text: str) -> Path:
        """A mounted secret."""
        path = self.folder / name
        path.write_text(f"{text}\n")
        return path

    @property
    def all(self) -> tuple[str, ...]:
        return (self.kafka_password, self.redis_password, self.scheduler_token)


class SecureKafka(KafkaPart):
    """Clients get in by SASL_SSL only: SCRAM-SHA-512 or PLAIN, with a certificate of their own."""

    def __init__(self, *, data: Path, secrets: Secrets) -> None:
        super().__init__(data=data, distribution=kafka_distribution.resolve())
        self._secrets = secrets
        self._client_port = ports.lease()

    @property
    def bootstrap(self) -> str:
        return f"127.0.0.1:{self._client_port}"

    def own_ports(self) -> Sequence[int]:
        return (*super().own_ports(), self._client_port)

    def command(self) -> Sequence[str]:
        command = super().command()
        properties = self.data / "server.properties"
        lines = dict(line.split("=", 1) for line in properties.read_text().splitlines())
        clients = f"CLIENT://127.0.0.1:{self._client_port}"
        lines["listeners"] += f",{clients}"
        lines["advertised.listeners"] += f",{clients}"
        lines["listener.security.protocol.map"] += ",CLIENT:SASL_SSL"
        listener, jaas = "listener.name.client", "org.apache.kafka.common.security"
        lines |= {
            f"{listener}.sasl.enabled.mechanisms": "SCRAM-SHA-512,PLAIN",
            f"{listener}.scram-sha-512.sasl.jaas.config": f"{jaas}.scram.ScramLoginModule required;",
            f"{listener}.plain.sasl.jaas.config": (
                f'{jaas}.plain.PlainLoginModule required user_{USER}="{self._secrets.kafka_password}";'
            ),
            f"{listener}.ssl.keystore.type": "PEM",
            f"{listener}.ssl.keystore.location": str(self._secrets.folder / "server.pem"),
            f"{listener}.ssl.truststore.type": "PEM",
            f"{listener}.ssl.truststore.location": str(self._secrets.authority),
            f"{listener}.ssl.client.auth": "required",
        }
        properties.write_text("".join(f"{name}={value}\n" for name, value in lines.items()))
        return command

    def prepare(self) -> None:
        """SCRAM credentials of a KRaft cluster are there from its formatting on."""
        self.data.mkdir(parents=True, exist_ok=True)
        self.command()
        user = f"SCRAM-SHA-512=[name={USER},password={self._secrets.kafka_password}]"
        tool = kafka_distribution.resolve().command(
            "kafka.tools.StorageTool",
            *("format", "--cluster-id", kafka_config.kafka_uuid(uuid4()), "--add-scram", user),
            *("--config", str(self.data / "server.properties")),
        )
        formatted = subprocess.run(tool, cwd=self.work_folder(), capture_output=True, timeout=60, check=False)
        assert formatted.returncode == 0, formatted.stderr.decode()
        super().prepare()


class SecureValkey(ValkeyPart):
    """Anybody may PING; all else is for one user, on Towline's keys, without what is dangerous."""

    def __init__(self, *, data: Path, secrets: Secrets) -> None:
        super().__init__(data=data)
        self._secrets = secrets

    def command(self) -> Sequence[str]:
        binary, *options = super().command()
        users = self.data / "users.conf"
        users.write_text(
            "user default on nopass resetkeys resetchannels -@all +ping\n"
            f"user {USER} on >{self._secrets.redis_password} ~towline:* &towline:* "
            "+@all -@admin -@dangerous +info\n"
        )
        return [binary, str(users), *options]


class SecureScheduler(SchedulerPart):
    """TLS and a bearer token."""

    def __init__(self, *, data: Path, secrets: Secrets) -> None:
        folder = secrets.folder
        super().__init__(
            data=data,
            options=(
                *("--tls-cert", str(folder / "server.crt"), "--tls-key", str(folder / "server.key")),
                *("--token", secrets.scheduler_token),
            ),
        )

    @property
    def address(self) -> str:
        return super().address.replace("http://", "https://")


@contextmanager
def tls_in_front_of(port: int, secrets: Secrets) -> Generator[int]:
    """A port that speaks TLS and passes on what is in it: this build of Valkey has none of its own."""
    import ssl

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(secrets.folder / "server.crt", secrets.folder / "server.key")
    loop = asyncio.new_event_loop()
    front = ports.lease()

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(pass_on(reader, inner_writer), pass_on(inner_reader, writer))

    async def end() -> None:
        server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    server = loop.run_until_complete(asyncio.start_server(serve, "127.0.0.1", front, ssl=context))
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield front
    finally:
        asyncio.run_coroutine_threadsafe(end(), loop).result(5)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(5)
        loop.close()


def client_settings(secrets: Secrets) -> Mapping[str, str]:
    """What a role needs to reach them, besides addresses."""
    folder = secrets.folder
    return {
        "TOWLINE_KAFKA_SECURITY_PROTOCOL": "SASL_SSL",
        "TOWLINE_KAFKA_SASL_MECHANISM": "SCRAM-SHA-512",
        "TOWLINE_KAFKA_SASL_USERNAME": USER,
        "TOWLINE_KAFKA_SASL_PASSWORD_FILE": str(folder / "kafka_password"),
        "TOWLINE_KAFKA_SSL_CA_FILE": str(secrets.authority),
        "TOWLINE_KAFKA_SSL_CERT_FILE": str(folder / "client.crt"),
        "TOWLINE_KAFKA_SSL_KEY_FILE": str(folder / "client.key"),
        "TOWLINE_SCHEDULER_CREDENTIAL": "token",
        "TOWLINE_SCHEDULER_TOKEN_FILE": str(folder / "scheduler_token"),
        "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH": str(secrets.authority),
    }
