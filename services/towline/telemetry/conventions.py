"""Names of Towline's own span attributes, in one place.

Messaging names are in `towline.contracts.tracing`, because users of the client send and process too; gen_ai
names are those of Agent Framework, which makes these spans. Both follow the OpenTelemetry conventions.
"""

from __future__ import annotations

from typing import Final

RUN_ID: Final = "towline.run_id"
RUN_TYPE: Final = "towline.run_type"
SESSION_ID: Final = "towline.session_id"
TURN: Final = "towline.turn"
APPROVAL_ID: Final = "towline.approval_id"
APPROVER: Final = "towline.approver"
OUTCOME: Final = "towline.outcome"
REASON: Final = "towline.reason"
