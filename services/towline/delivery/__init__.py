"""Ordered at-least-once consumption, dead letters and replay. Knows nothing of the events' meaning.

`lanes` (pure: order, offsets, limits) ← `processing` (runs handlers) ← `consumer` (aiokafka);
`dead_letters` writes what a handler gives up on, `archive` lists, replays and discards it.
"""

from towline.delivery.backoff import Backoff
from towline.delivery.consumer import Consumer, ConsumerOptions
from towline.delivery.lanes import Limits
from towline.delivery.outcomes import DONE, DeadLetter, Deferred, Done, Outcome, Retry
from towline.delivery.processing import Delivery, KafkaRecord, Policy

__all__ = [
    "DONE",
    "Backoff",
    "Consumer",
    "ConsumerOptions",
    "DeadLetter",
    "Deferred",
    "Delivery",
    "Done",
    "KafkaRecord",
    "Limits",
    "Outcome",
    "Policy",
    "Retry",
]
