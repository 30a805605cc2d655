"""Where the neighbours are: settings that more than one role reads, from `TOWLINE_*` variables."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from towline.contracts.stream import DEFAULT_KEY_PREFIX
from towline.contracts.topics import DEFAULT_PREFIX, Topics


class KafkaSettings(BaseSettings):
    """How to reach Kafka. Used by every role and by the client."""

    model_config = SettingsConfigDict(
        env_prefix="TOWLINE_KAFKA_", frozen=True, extra="ignore", hide_input_in_errors=True
    )

    bootstrap: str = Field(default="127.0.0.1:9092", description="Comma-separated host:port of some brokers.")
    topic_prefix: str = Field(
        default=DEFAULT_PREFIX,
        # What Kafka allows in a topic's name, less the longest of ours.
        pattern=r"^[A-Za-z0-9._-]{0,230}$",
        description="Put before each topic's name.",
    )
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        default="PLAINTEXT", description="Kafka's security.protocol."
    )
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = Field(
        default="PLAIN", description="Kafka's sasl.mechanism, with a SASL protocol."
    )
    sasl_username: str | None = Field(default=None, description="SASL user name.")
    sasl_password: SecretStr | None = Field(default=None, description="SASL password.")
    sasl_password_file: Path | None = Field(
        default=None, description="File that holds the SASL password, for example a mounted secret."
    )
    ssl_ca_file: Path | None = Field(
        default=None, description="PEM file of the authority to trust; default: the system's."
    )
    ssl_cert_file: Path | None = Field(
        default=None, description="PEM file of the client certificate, for mutual TLS."
    )
    ssl_key_file: Path | None = Field(default=None, description="PEM file of the client certificate's key.")

    @model_validator(mode="before")
    @classmethod
    def _read_files(cls, values: dict[str, Any]) -> dict[str, Any]:
        return with_secret_of_file(values, "sasl_password")

    @field_validator("bootstrap")
    @classmethod
    def _check_bootstrap(cls, value: str) -> str:
        brokers = [broker.strip() for broker in value.split(",") if broker.strip()]
        if not brokers:
            raise ValueError("names no broker: give host:port")
        for broker in brokers:
            _, colon, port = broker.rpartition(":")
            is_port = port.isascii() and port.isdigit() and 0 < int(port[:6]) < 65_536
            if colon and not broker.endswith("]") and not is_port:
                raise ValueError(f"{broker!r} has no port after its last colon: give host:port")
        return value

    @model_validator(mode="after")
    def _check_security(self) -> Self:
        """What would otherwise show as an error deep inside the Kafka client, or not at all."""
        if self.security_protocol.startswith("SASL"):
            for name in ("sasl_username", "sasl_password"):
                if getattr(self, name) is None:
                    raise ValueError(f"{name} is needed with security_protocol {self.security_protocol}")
        for name in ("ssl_ca_file", "ssl_cert_file", "ssl_key_file"):
            path: Path | None = getattr(self, name)
            if path is not None and not path.is_file():
                raise ValueError(f"{name} {path}: there is no such file")
        if (self.ssl_cert_file is None) != (self.ssl_key_file is None):
            raise ValueError("ssl_cert_file and ssl_key_file go together: give both or none")
        self._check_certificates()
        return self

    def _check_certificates(self) -> None:
        """To the client a file that it cannot use is a broker that is away."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        try:
            if self.ssl_ca_file is not None:
                context.load_verify_locations(self.ssl_ca_file)
        except OSError as error:
            raise ValueError(f"ssl_ca_file {self.ssl_ca_file}: holds no certificate: {error}") from None
        try:
            if self.ssl_cert_file is not None:
                # Without an answer here, a key with a password would ask for it on the terminal.
                context.load_cert_chain(self.ssl_cert_file, self.ssl_key_file, password=lambda: b"")
        except (OSError, ValueError) as error:
            raise ValueError(
                f"ssl_cert_file {self.ssl_cert_file} and ssl_key_file {self.ssl_key_file}: are no "
                f"certificate and its key without a password: {error}"
            ) from None

    @property
    def topics(self) -> Topics:
        """The topics' names under the prefix set here."""
        return Topics(self.topic_prefix)

    def connection(self) -> dict[str, Any]:
        """Keyword arguments for any aiokafka client (consumer, producer, admin)."""
        arguments: dict[str, Any] = {
            "bootstrap_servers": self.bootstrap,
            "security_protocol": self.security_protocol,
        }
        if self.security_protocol.startswith("SASL"):
            arguments["sasl_mechanism"] = self.sasl_mechanism
            arguments["sasl_plain_username"] = self.sasl_username
            arguments["sasl_plain_password"] = (
                self.sasl_password.get_secret_value() if self.sasl_password else None
            )
        if self.security_protocol.endswith("SSL"):
            from aiokafka.helpers import create_ssl_context

            arguments["ssl_context"] = create_ssl_context(
                cafile=str(self.ssl_ca_file) if self.ssl_ca_file else None,
                certfile=str(self.ssl_cert_file) if self.ssl_cert_file else None,
                keyfile=str(self.ssl_key_file) if self.ssl_key_file else None,
            )
        return arguments


class RedisSettings(BaseSettings):
    """How to reach Redis or Valkey. Used by worker and relay."""

    model_config = SettingsConfigDict(
        env_prefix="TOWLINE_REDIS_", frozen=True, extra="ignore", hide_input_in_errors=True
    )

    url: SecretStr = Field(
        default=SecretStr("redis://127.0.0.1:6379/0"),
        description="redis:// or rediss:// (TLS), with user and password; ?ssl_ca_certs=FILE names the "
        "authority to trust.",
    )
    url_file: Path | None = Field(
        default=None, description="File that holds the URL, for example a mounted secret."
    )
    key_prefix: str = Field(
        default=DEFAULT_KEY_PREFIX,
        pattern=r"^[A-Za-z0-9._:-]{1,64}$",
        description="Put before each key and channel: stacks that share one Redis need one each, "
        "the same for worker and relay.",
    )

    @model_validator(mode="before")
    @classmethod
    def _read_files(cls, values: dict[str, Any]) -> dict[str, Any]:
        return with_secret_of_file(values, "url")


class PayloadSettings(BaseSettings):
    """Where data goes that is too large for Kafka and for histories. Used by every role and by the client."""

    model_config = SettingsConfigDict(
        env_prefix="TOWLINE_PAYLOADS_", frozen=True, extra="ignore", hide_input_in_errors=True
    )

    url: SecretStr | None = Field(
        default=None,
        description="The payload store, the same for all roles and clients: file:///folder, redis://, "
        "rediss://, s3://bucket/prefix, az://container/prefix, gs://bucket/prefix; default: none, large data "
        "is refused.",
    )
    url_file: Path | None = Field(
        default=None, description="File that holds the URL, for example a mounted secret."
    )
    inline_bytes: int = Field(
        default=262_144, ge=1_024, description="Larger fields of an orchestration's history go to the store."
    )
    event_bytes: int = Field(
        default=900_000,
        ge=1_024,
        le=1_000_000,
        description="An event whose data is larger carries a reference (dataref) to it.",
    )
    max_bytes: int = Field(
        default=32 * 1024 * 1024, ge=1_024, description="Largest payload that is taken, before compression."
    )
    retention_s: float = Field(
        default=31 * 24 * 3600.0,
        gt=0,
        description="Payloads that were not used for so long are deleted (folder) or expire (Redis); longer "
        "than any run and than the topics' retention. S3, Azure and GCS: set a lifecycle rule.",
    )
    cache_bytes: int = Field(
        default=64 * 1024 * 1024, ge=0, description="Memory of one process for the payloads used last."
    )

    @model_validator(mode="before")
    @classmethod
    def _read_files(cls, values: dict[str, Any]) -> dict[str, Any]:
        return with_secret_of_file(values, "url")


class SchedulerSettings(BaseSettings):
    """How to reach the Durable Task scheduler (ours or Azure's). Used by bridge and worker."""

    model_config = SettingsConfigDict(
        env_prefix="TOWLINE_SCHEDULER_", frozen=True, extra="ignore", hide_input_in_errors=True
    )

    address: str = Field(
        default="http://127.0.0.1:8080", description="http:// is a plaintext channel, https:// one with TLS."
    )
    taskhub: str = Field(default="default", description="The task hub.")
    credential: Literal["none", "token", "azure"] = Field(
        default="none",
        description="none; token: the bearer token below; azure: Entra ID by azure-identity's default chain.",
    )
    token: SecretStr | None = Field(
        default=None, description="Bearer token of a scheduler that asks for one."
    )
    token_file: Path | None = Field(
        default=None, description="File that holds the token, for example a mounted secret."
    )

    @model_validator(mode="before")
    @classmethod
    def _read_files(cls, values: dict[str, Any]) -> dict[str, Any]:
        return with_secret_of_file(values, "token")

    @model_validator(mode="after")
    def _check_token(self) -> Self:
        if self.credential == "token" and self.token is None:
            raise ValueError("token or token_file is needed with credential token")
        return self


def with_secret_of_file(values: dict[str, Any], name: str) -> dict[str, Any]:
    """`values` of a settings class with `name` from the file that ``{name}_file`` names, unless it is set.

    Raises:
        ValueError: The file cannot be read, or is empty.
    """
    path = values.get(f"{name}_file")
    if not path or values.get(name):
        return values
    try:
        secret = Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{name}_file {path}: {getattr(error, 'strerror', None) or 'is no UTF-8'}") from None
    if not secret:
        raise ValueError(f"{name}_file {path} is empty")
    return {**values, name: secret}
