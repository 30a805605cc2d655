"""Settings of the token writer, from `TOWLINE_STREAM_*`."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class StreamSettings(BaseSettings):
    """How tokens get to Redis. Where Redis is: `TOWLINE_REDIS_URL`."""

    model_config = SettingsConfigDict(
        env_prefix="TOWLINE_STREAM_", frozen=True, extra="ignore", hide_input_in_errors=True
    )

    enabled: bool = Field(
        default=True,
        description="Write tokens to Redis. If not, the worker needs no Redis, and agents are called "
        "unstreamed, which takes a fifth less of the worker's CPU, unless the app has a callback for what "
        "they stream.",
    )
    flush_interval_ms: float = Field(
        default=15,
        gt=0,
        le=1000,
        description="Text waits so long for more, the first word too: together they are one entry.",
    )
    ttl_s: int = Field(
        default=7 * 24 * 3600, gt=0, description="A stream is deleted this long after its last entry."
    )
    entries_max: int = Field(
        default=10_000, ge=100, description="About how many entries of one stream are kept."
    )
    turn_chars_max: int = Field(
        default=1_000_000,
        gt=0,
        description="Longest text of an unfinished turn kept; beyond it readers get the message alone.",
    )
    total_chars_max: int = Field(
        default=32_000_000, gt=0, description="Most text kept over all turns while Redis is away."
    )
    remember_s: float = Field(
        default=10, ge=0, description="How long a finished turn is kept, to mend a stream that lost its tail."
    )
    timeout_s: float = Field(default=2, gt=0, description="Longest wait for Redis before it counts as away.")
