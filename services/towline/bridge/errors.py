"""Errors of the bridge.

```
TowlineError
└── BridgeError
    ├── SchedulerAwayError      no answer, overloaded, or it refuses our credentials: hold and try again
    ├── SchedulerRefusedError   it will never take this call: the event is at fault
    ├── SchedulerFaultError     it failed inside: try again a few times
    ├── AnswersUnreadableError  Kafka is away: what was answered before can't be told now
    ├── RunExistsError          an instance of that id exists
    ├── RunUnknownError         no instance of that id
    └── ApprovalPolicyError     the file of approvers' rules can't be used
```
"""

from __future__ import annotations

from towline.contracts.errors import TowlineError


class BridgeError(TowlineError):
    """Base of the bridge's errors."""


class SchedulerAwayError(BridgeError):
    """The scheduler can't be used now. The call may have taken effect all the same."""


class SchedulerRefusedError(BridgeError):
    """The scheduler will not take this call, however often it is made."""

    def __init__(self, message: str, *, too_large: bool = False) -> None:
        super().__init__(message)
        self.too_large = too_large


class SchedulerFaultError(BridgeError):
    """The scheduler failed for a reason that does not tell whether trying again helps."""


class AnswersUnreadableError(BridgeError):
    """What was answered before can't be read from Kafka now."""


class RunExistsError(BridgeError):
    """The id is taken by an instance, live or finished."""


class RunUnknownError(BridgeError):
    """There is no instance of that id."""


class ApprovalPolicyError(BridgeError):
    """The file that says who may approve can't be used; the message names the field."""
