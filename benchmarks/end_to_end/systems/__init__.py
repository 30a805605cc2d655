"""What is measured: each system's processes, and how to speak with it over Kafka."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.end_to_end.systems.base import System
from benchmarks.end_to_end.systems.calfkit import Calfkit, CalfkitTuned
from benchmarks.end_to_end.systems.dbos import Dbos, DbosTuned
from benchmarks.end_to_end.systems.restate import Restate, RestateTuned
from benchmarks.end_to_end.systems.straightforward import Straightforward
from benchmarks.end_to_end.systems.temporal import Temporal, TemporalTuned
from benchmarks.end_to_end.systems.towline import Towline, TowlineCore

SYSTEMS: Mapping[str, type[System]] = {
    system.name: system
    for system in (
        Towline,
        TowlineCore,
        Straightforward,
        Restate,
        RestateTuned,
        Dbos,
        DbosTuned,
        Calfkit,
        CalfkitTuned,
        Temporal,
        TemporalTuned,
    )
}

__all__ = ["SYSTEMS", "System"]
