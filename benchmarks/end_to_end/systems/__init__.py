"""What is measured: each system's processes, and how to speak with it over Kafka."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.end_to_end.systems.base import System
from benchmarks.end_to_end.systems.straightforward import Straightforward
from benchmarks.end_to_end.systems.towline import Towline

SYSTEMS: Mapping[str, type[System]] = {system.name: system for system in (Towline, Straightforward)}

__all__ = ["SYSTEMS", "System"]
