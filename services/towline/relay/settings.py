"""The relay's settings, from `TOWLINE_RELAY_*`; where Kafka and Redis are is in the contracts' settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from towline.contracts.settings import with_secret_of_file


class RelaySettings(BaseSettings):
    """How the relay serves."""

    model_config = SettingsConfigDict(
        env_prefix="TOWLINE_RELAY_", frozen=True, extra="ignore", hide_input_in_errors=True
    )

    http_listen: str = Field(
        default="127.0.0.1:8090", description="host:port. Without auth, loopback addresses only."
    )
    group: str = Field(
        default="relay",
        min_length=1,
        description="The consumer group is {topic prefix}{group}; same for all replicas.",
    )
    unknown_run_grace_s: float = Field(
        default=30, ge=0, description="How long the stream of an unknown run waits for it before 404."
    )
    heartbeat_s: float = Field(
        default=15, gt=0, description="Seconds without an event after which a comment is sent."
    )
    send_timeout_s: float = Field(
        default=20,
        gt=0,
        description="A client that takes nothing of an answer or a stream for so long is dropped; "
        "a stream can be resumed.",
    )
    ttl_s: int = Field(
        default=7 * 24 * 3600, gt=0, description="A run's keys live so long after its last write."
    )
    ended_ttl_s: int = Field(default=24 * 3600, gt=0, description="A stream lives so long after its end.")
    entries_max: int = Field(default=10_000, ge=100, description="About how many entries a stream keeps.")
    turns_close_s: float = Field(
        default=2, ge=0, description="How long the end of a stream waits for agent turns that are still open."
    )
    settle_ms: float = Field(
        default=40,
        ge=0,
        description="Wait before an end is written, for the tokens written last.",
    )
    auth: str = Field(
        default="none",
        description="none (loopback only), or a comma-separated list of: keys, oidc.",
    )
    api_keys_file: Path | None = Field(
        default=None, description="JSON lines: {name, sha256, roles}. See towline relay new-key."
    )
    api_keys: SecretStr | None = Field(default=None, description="The same as api_keys_file, inline.")
    oidc_issuer: str | None = Field(default=None, description="Issuer (iss) of accepted tokens.")
    oidc_audience: str | None = Field(default=None, description="Audience (aud) of accepted tokens.")
    oidc_jwks_url: str | None = Field(
        default=None, description="Signing keys; default: found by the issuer's discovery document."
    )
    oidc_roles_claim: str = Field(default="roles", description="Claim that lists read, start, approve.")
    signing_key: SecretStr | None = Field(
        default=None,
        description="Private key (JWK) by which callers' decisions are signed, for the bridge's approval "
        "policy. See towline relay new-signing-key.",
    )
    signing_key_file: Path | None = Field(
        default=None, description="File that holds the signing key, for example a mounted secret."
    )
    cors_origins: str = Field(default="", description="Comma-separated origins that may call; default: none.")
    rate_per_s: float = Field(default=50, gt=0, description="Requests a second per caller, on average.")
    rate_burst: int = Field(default=200, ge=1, description="Requests a caller may make at once.")
    body_bytes_max: int = Field(default=1_000_000, gt=0, description="Largest request body.")
    trace_url: str | None = Field(
        default=None,
        description="Where a run's trace is shown, with {trace_id} in it: a link of GET /runs/{id}.",
    )
    clients_max: int = Field(default=10_000, ge=1, description="Most SSE clients of one replica.")

    @model_validator(mode="before")
    @classmethod
    def _read_files(cls, values: dict[str, Any]) -> dict[str, Any]:
        return with_secret_of_file(values, "signing_key")
