"""What the book of asks is made of: an ask and its states, and the effects of what comes to it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final, Literal, TypeAlias

from towline.contracts.durable import RaisedCommand
from towline.contracts.events import ApprovalOutcome, ApprovalRefusal


class AskState(StrEnum):
    """Where an ask stands."""

    OPEN = "open"
    LAPSED = "lapsed"
    RESOLVED = "resolved"


Trigger: TypeAlias = Literal["decide", "answer", "lapse", "revive", "supersede", "cancel", "expire", "end"]

TRANSITIONS: Final[Mapping[tuple[AskState, Trigger], tuple[AskState, ApprovalOutcome | None]]] = {
    (AskState.OPEN, "decide"): (AskState.RESOLVED, None),
    (AskState.OPEN, "answer"): (AskState.RESOLVED, None),
    (AskState.OPEN, "lapse"): (AskState.LAPSED, None),
    (AskState.OPEN, "cancel"): (AskState.RESOLVED, "cancelled"),
    (AskState.OPEN, "expire"): (AskState.RESOLVED, "expired"),
    (AskState.OPEN, "end"): (AskState.RESOLVED, "cancelled"),
    (AskState.LAPSED, "answer"): (AskState.RESOLVED, None),
    (AskState.LAPSED, "revive"): (AskState.OPEN, None),
    (AskState.LAPSED, "supersede"): (AskState.RESOLVED, "expired"),
    (AskState.LAPSED, "cancel"): (AskState.RESOLVED, "expired"),
    (AskState.LAPSED, "expire"): (AskState.RESOLVED, "expired"),
    (AskState.LAPSED, "end"): (AskState.RESOLVED, "expired"),
}
"""Next state and, where the trigger alone decides it, the outcome. What is not here changes nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AskSpec:
    """What is asked, and of whom."""

    approval_id: str
    name: str
    """Name of the external event that also answers it."""
    digest: str | None = None
    deadline: datetime | None = None
    """Decisions published later are refused. None: the run itself decides when it stops waiting."""
    approvers: frozenset[str] | None = None
    """Who may decide; None: anyone."""
    quorum: int = 1
    """Approvals needed, each by another approver. One rejection rejects."""


@dataclass(frozen=True, slots=True)
class Deliver:
    """Complete the run's wait with what was decided."""

    approval_id: str
    command: RaisedCommand
    approved: bool
    votes: tuple[RaisedCommand, ...]


@dataclass(frozen=True, slots=True)
class Resolved:
    """Publish ``approval.resolved``."""

    approval_id: str
    outcome: ApprovalOutcome
    command_id: str | None = None
    approver: str | None = None
    feedback: str | None = None


@dataclass(frozen=True, slots=True)
class Refused:
    """Publish ``approval.refused``."""

    approval_id: str
    command_id: str
    reason: ApprovalRefusal


@dataclass(frozen=True, slots=True)
class Forward:
    """Hand the command on to the child that asks."""

    instance_id: str
    command: RaisedCommand


Effect: TypeAlias = Deliver | Resolved | Refused | Forward


def key_of(name: str) -> str:
    """External events are case-insensitive in Durable Task, and so are the ids made of their names."""
    return name.casefold()


def approves(command: RaisedCommand) -> bool:
    """Whether a command approves. A raised event without `approved` in its data does."""
    if command.kind == "decision":
        return command.approved is True
    if isinstance(command.data, dict) and "approved" in command.data:
        return command.data["approved"] is True
    return True
