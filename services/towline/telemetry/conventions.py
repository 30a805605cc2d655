"""Names of span attributes and metrics, in one place, because conventions move.

Messaging and gen_ai names follow the OpenTelemetry semantic conventions; `towline.*` are ours.
"""

from __future__ import annotations

from typing import Final

RUN_ID: Final = "towline.run_id"
RUN_TYPE: Final = "towline.run_type"
SESSION_ID: Final = "towline.session_id"
APPROVAL_ID: Final = "towline.approval_id"
OUTCOME: Final = "towline.outcome"
REASON: Final = "towline.reason"

MESSAGING_SYSTEM: Final = "messaging.system"
MESSAGING_OPERATION_NAME: Final = "messaging.operation.name"
MESSAGING_OPERATION_TYPE: Final = "messaging.operation.type"
MESSAGING_DESTINATION: Final = "messaging.destination.name"
MESSAGING_CONSUMER_GROUP: Final = "messaging.consumer.group.name"
MESSAGING_PARTITION: Final = "messaging.destination.partition.id"
MESSAGING_OFFSET: Final = "messaging.kafka.offset"
MESSAGING_KEY: Final = "messaging.kafka.message.key"
MESSAGING_MESSAGE_ID: Final = "messaging.message.id"

GEN_AI_MODEL: Final = "gen_ai.request.model"
GEN_AI_AGENT: Final = "gen_ai.agent.name"
