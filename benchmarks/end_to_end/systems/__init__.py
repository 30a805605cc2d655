"""What is measured: each system's processes, and how to speak with it over Kafka."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.end_to_end.systems.base import System
from benchmarks.end_to_end.systems.calfkit import Calfkit, CalfkitTuned, CalfkitX2
from benchmarks.end_to_end.systems.dbos import Dbos, DbosTuned, DbosX2
from benchmarks.end_to_end.systems.restate import Restate, RestateTuned, RestateX2
from benchmarks.end_to_end.systems.straightforward import Straightforward, StraightforwardX2
from benchmarks.end_to_end.systems.temporal import Temporal, TemporalTuned
from benchmarks.end_to_end.systems.towline import Towline, TowlineCore, TowlineCoreX2, TowlineX2

SYSTEMS: Mapping[str, type[System]] = {
    system.name: system
    for system in (
        Towline,
        TowlineCore,
        TowlineX2,
        TowlineCoreX2,
        Straightforward,
        StraightforwardX2,
        Restate,
        RestateTuned,
        RestateX2,
        Dbos,
        DbosTuned,
        DbosX2,
        Calfkit,
        CalfkitTuned,
        CalfkitX2,
        Temporal,
        TemporalTuned,
    )
}

__all__ = ["SYSTEMS", "System"]
