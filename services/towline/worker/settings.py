"""The worker's settings, from `TOWLINE_WORKER_*`; those of its neighbours are in the contracts."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from towline.telemetry.listen import ListenAddress


class WorkerSettings(BaseSettings):
    """How one worker process hosts its app."""

    model_config = SettingsConfigDict(
        env_prefix="TOWLINE_WORKER_", frozen=True, extra="ignore", hide_input_in_errors=True
    )

    app: str = Field(default="", description="What to host: package.module:attribute. --app overrides it.")
    app_name: str = Field(default="", description="Name in the catalog; default: the module's name.")
    app_version: str = Field(
        default="", description="Version in the catalog; default: the module's __version__, else 0."
    )
    http_listen: ListenAddress = Field(
        default="127.0.0.1:8083", description="Where /healthz, /readyz and /metrics are served."
    )
    processes: int = Field(
        default=1,
        ge=1,
        description="Worker processes under one (--processes overrides it): http_listen answers for all, "
        "and each has an address of its own, on the ports that follow.",
    )
    dispatcher: Literal["async", "sdk"] = Field(
        default="async",
        description="Who carries work items out: Towline's asynchronous dispatcher, or the SDK's own worker.",
    )
    reports: Literal["direct", "grpc"] = Field(
        default="direct",
        description="How work comes from the scheduler and results go there: direct: over HTTP/2 from the "
        "event loop, if it speaks plain text; grpc, and with TLS always: by gRPC's core, for more CPU.",
    )
    sdk_versions: Literal["pinned", "any"] = Field(
        default="pinned",
        description="any: start with SDKs of other versions than this worker is built for too, if they have "
        "what it uses; the SDK's own worker then carries work items out.",
    )
    threads: int = Field(
        default=512,
        ge=4,
        description="Threads for activities and entities that are no agents; with dispatcher sdk for all.",
    )
    max_turns: int = Field(
        default=128,
        ge=1,
        description="Orchestration turns in hand at once: a turn that a decision wakes waits behind as many.",
    )
    max_activities: int = Field(default=512, ge=1, description="Activities in hand at once.")
    max_agent_turns: int = Field(
        default=2_000, ge=1, description="Agent and other entity batches at once; agents hold no thread."
    )
    replay: Literal["sampled", "always", "never"] = Field(
        default="sampled",
        description="Whether a turn replays its run's whole history: always; never, if it can go on where"
        " the turn before left the code; sampled: as never, but for the first turns of each orchestrator and"
        " one in 64, which finds code that is not deterministic.",
    )
    kept_runs: int = Field(
        default=4_000, ge=1, description="Orchestrations whose code is kept between turns, at most."
    )
    kept_mb: int = Field(
        default=64, ge=1, description="MB of history of the orchestrations kept, all together, at most."
    )
    kept_s: float = Field(
        default=60.0,
        gt=0,
        description="Seconds without a turn after which one is no longer kept.",
    )
    stop_timeout_s: float = Field(
        default=10.0, gt=0, description="Seconds that work in hand may take after SIGTERM; then it is left."
    )
