"""Logging, tracing and metrics set-up, and context propagation, for every role."""

from towline.telemetry.health import HealthServer, health_routes
from towline.telemetry.listen import ListenError
from towline.telemetry.logs import configure_logging
from towline.telemetry.setup import set_up

__all__ = ["HealthServer", "ListenError", "configure_logging", "health_routes", "set_up"]
