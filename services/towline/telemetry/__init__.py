"""Logging, tracing and metrics set-up, and context propagation, for every role."""

from towline.telemetry.logs import configure_logging
from towline.telemetry.setup import set_up

__all__ = ["configure_logging", "set_up"]
