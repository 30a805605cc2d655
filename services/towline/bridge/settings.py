"""The bridge's settings, from `TOWLINE_BRIDGE_*`; where its neighbours are: `towline.contracts.settings`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from towline.telemetry.listen import ListenAddress


class BridgeSettings(BaseSettings):
    """How one bridge process behaves. All durations are in seconds."""

    model_config = SettingsConfigDict(
        env_prefix="TOWLINE_BRIDGE_", frozen=True, extra="ignore", hide_input_in_errors=True
    )

    http_listen: ListenAddress = Field(
        default="127.0.0.1:8081", description="host:port of /healthz, /readyz and /metrics."
    )
    group: str = Field(
        default="bridge",
        min_length=1,
        description="Consumer groups are {topic prefix}{group}.runs and .approvals; same for all replicas.",
    )
    create_topics: bool = Field(
        default=True, description="Create missing topics at start; off where an administrator does it."
    )
    max_in_flight: int = Field(
        default=64,
        ge=1,
        description="Commands handled at the same time, for each of the two topics: a decision's call to the "
        "scheduler waits behind as many starts.",
    )
    max_input_bytes: int | None = Field(
        default=None,
        ge=1,
        description="Largest input of a run and data of a decision, as JSON; default: 1,000,000, with a "
        "payload store what that takes.",
    )
    approval_policy_file: Path | None = Field(
        default=None,
        description="JSON file that says who may decide which run types, and whose signatures prove it; "
        "default: whoever may write to the topic. See the approvals guide.",
    )
    unknown_run_grace_s: float = Field(
        default=30.0,
        ge=0,
        description="How long a decision or control command waits for its run to be known.",
    )
    run_type_grace_s: float = Field(
        default=30.0, ge=0, description="How long a request waits for a first app while none is registered."
    )
    cancel_grace_s: float = Field(
        default=60.0, ge=0, description="A cancelled run that has not ended by itself then is terminated."
    )
    call_timeout_s: float = Field(
        default=10.0, gt=0, description="A call of the scheduler without an answer by then counts as failed."
    )
    calls: Literal["direct", "grpc"] = Field(
        default="direct",
        description="How the scheduler is called: direct: short calls over HTTP/2 from the event loop, if it "
        "speaks plain text and takes no Entra token; grpc, and otherwise always: by gRPC's core.",
    )
    sweep_every_s: float = Field(
        default=15.0, gt=0, description="How often runs that ended without their worker are looked for."
    )
    sweep_window_s: float = Field(
        default=3600.0, gt=0, description="How far back in time they are looked for."
    )
    drain_s: float = Field(
        default=5.0, gt=0, description="Time for commands in hand to finish at a rebalance and at SIGTERM."
    )
