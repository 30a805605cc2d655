"""The local stack: real parts, one process each, for people (`towline dev`) and for tests."""

from towline.dev.errors import DevError, PartFailedError
from towline.dev.kafka import KafkaPart
from towline.dev.part import Part
from towline.dev.roles import ProcessPart, SchedulerPart
from towline.dev.valkey import ValkeyPart

__all__ = [
    "DevError",
    "KafkaPart",
    "Part",
    "PartFailedError",
    "ProcessPart",
    "SchedulerPart",
    "ValkeyPart",
]
