"""The book of asks of one run: which decisions are waited for, and what becomes of each that comes.

Pure: commands and the run's own steps go in, effects come out; no clock, no I/O. It lives inside the
orchestration and is rebuilt by replay, so whatever it decides depends only on the order of the history.

```
            opened
              │            lost a race against a timer
              ▼       ┌──────────────────────────────┐
            OPEN ─────┤                              ▼
              │       └────────────────────────── LAPSED
              │          waited for again            │
   decision, native event, cancel, deadline, end     │ successor opened, cancel, end
              ▼                                      ▼
           RESOLVED(approved|rejected|expired|cancelled)   RESOLVED(expired)
```
A decision on an OPEN ask is checked (digest, approvers, deadline) and counted; on a LAPSED one it waits,
because only the run's next steps tell whether the ask still counts; on a RESOLVED one it is refused; for
an ask that isn't there yet it is kept. So every command gets exactly one answer, at the latest when the
run ends.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, cast

from towline.contracts.durable import ChildAsk, RaisedCommand
from towline.contracts.events import ApprovalOutcome, ApprovalRefusal
from towline.worker.ask_model import (
    TRANSITIONS,
    AskSpec,
    AskState,
    Deliver,
    Effect,
    Forward,
    Refused,
    Resolved,
    Trigger,
    approves,
    key_of,
)

SEEN_MAX: Final = 2_048
"""Command ids remembered to drop repeats. A repeat older than that would be answered a second time."""
EARLY_MAX: Final = 1_024
"""Decisions kept for asks that aren't there yet; further ones are refused at once."""
CLOSED_CARRIED_MAX: Final = 256
"""Resolved asks, and as many of children, remembered over continue-as-new, to answer late decisions on them
exactly."""


@dataclass(slots=True)
class _Ask:
    spec: AskSpec
    state: AskState = AskState.OPEN
    outcome: ApprovalOutcome | None = None
    votes: list[RaisedCommand] = field(default_factory=list[RaisedCommand])


@dataclass(slots=True)
class _ChildAsk:
    approval_id: str
    name: str
    instance_id: str
    open: bool = True
    unanswered: dict[str, RaisedCommand] = field(default_factory=dict[str, RaisedCommand])


class Book:
    """All asks of one run and the commands on their way to them."""

    def __init__(self) -> None:
        self._asks: dict[str, _Ask] = {}
        self._unresolved: dict[str, dict[str, _Ask]] = {}
        """By name, in the order in which they were opened."""
        self._children: dict[str, _ChildAsk] = {}
        self._early: list[RaisedCommand] = []
        self._counts: dict[str, int] = {}
        self._seen: dict[str, None] = {}
        self._closed = False

    # What the run does.

    def name_ask(self, name: str) -> str:
        """The approval id of the next ask under `name`: the name itself, then ``name~2``, ``name~3``."""
        number = self._counts.get(key_of(name), 0) + 1
        self._counts[key_of(name)] = number
        return name if number == 1 else f"{name}~{number}"

    def open(self, spec: AskSpec, *, answered: bool = False) -> list[Effect]:
        """A new ask. Earlier ones of that name which timed out are over; what came early is handed to it.

        Args:
            spec: What is asked.
            answered: A native event is there already: call `answered` next, and hand it nothing.

        Raises:
            ValueError: An ask of that id exists, or the quorum can't be reached.
        """
        if key_of(spec.approval_id) in self._asks:
            raise ValueError(f"approval {spec.approval_id} exists already: choose another name")
        if spec.quorum < 1 or (spec.approvers is not None and spec.quorum > len(spec.approvers)):
            raise ValueError(f"approval {spec.approval_id}: quorum {spec.quorum} can't be reached")
        effects: list[Effect] = []
        for earlier in self._unresolved_of(spec.name):
            if earlier.state is AskState.LAPSED:
                effects += self._end(earlier, "supersede")
        ask = self._asks[key_of(spec.approval_id)] = _Ask(spec)
        self._unresolved.setdefault(key_of(spec.name), {})[key_of(spec.approval_id)] = ask
        return effects if answered else effects + self._offer_early()

    def is_open(self, approval_id: str) -> bool:
        """Whether the ask has not come to its end (timed out or not)."""
        ask = self._asks.get(key_of(approval_id))
        return ask is not None and ask.state is not AskState.RESOLVED

    def answered(self, approval_id: str, *, approved: bool, feedback: str | None = None) -> list[Effect]:
        """The run's wait was completed by an event that did not come through Towline."""
        ask = self._asks[key_of(approval_id)]
        resolved = self._resolve(ask, "answer", "approved" if approved else "rejected", feedback=feedback)
        return resolved + self._offer_early()

    def lapse(self, approval_id: str) -> list[Effect]:
        """A timer won the race that the run had set it against this ask."""
        ask = self._asks[key_of(approval_id)]
        if (ask.state, "lapse") in TRANSITIONS:
            ask.state = AskState.LAPSED
        return []

    def revive(self, approval_id: str) -> list[Effect]:
        """The run waits for the ask again."""
        ask = self._asks[key_of(approval_id)]
        if ask.state is not AskState.LAPSED:
            return []
        ask.state = AskState.OPEN
        return self._offer_early()

    def cancel(self, approval_id: str) -> list[Effect]:
        """The run gave the wait up."""
        return self._end(self._asks[key_of(approval_id)], "cancel")

    def escalate(self, approval_id: str, approvers: frozenset[str]) -> None:
        """Let further people decide on an ask that is restricted to some."""
        ask = self._asks[key_of(approval_id)]
        if ask.spec.approvers is not None:
            ask.spec = replace(ask.spec, approvers=ask.spec.approvers | approvers)

    def expire(self, approval_id: str) -> list[Effect]:
        """The ask's deadline has come."""
        return self._end(self._asks[key_of(approval_id)], "expire")

    def close(self) -> list[Effect]:
        """The run has ended: open asks end, and what nobody took is refused."""
        if self._closed:
            return []
        self._closed = True
        effects = self._end_all()
        effects += [Refused(command.name, command.command_id, "unknown_approval") for command in self._early]
        self._early.clear()
        for child in self._children.values():
            effects += self._refuse_unanswered(child, "run_finished")
        return effects

    # What comes from outside.

    def receive(self, command: RaisedCommand) -> list[Effect]:
        """A decision or raised event. Its repeats (same command id) change nothing."""
        if command.command_id in self._seen:
            return []
        self._remember(command.command_id)
        if self._closed:
            return [Refused(command.name, command.command_id, "run_finished")]
        taken = self._offer(command)
        if taken is not None:
            return taken
        if len(self._early) >= EARLY_MAX:
            return [Refused(command.name, command.command_id, "unknown_approval")]
        self._early.append(command)
        return []

    def child_ask(self, notice: ChildAsk) -> list[Effect]:
        """A child asks, or its ask has come to its end. Repeats change nothing."""
        known = self._children.get(key_of(notice.approval_id))
        if notice.phase == "requested":
            if known is None:
                self._children[key_of(notice.approval_id)] = _ChildAsk(
                    notice.approval_id, notice.name or notice.approval_id, notice.instance_id
                )
            return [] if self._closed else self._offer_early()
        if known is None or not known.open:
            return []
        known.open = False
        for command_id in notice.answered:
            known.unanswered.pop(command_id, None)
        return self._refuse_unanswered(known, "already_resolved")

    # Continue-as-new.

    def carried(self) -> dict[str, Any]:
        """What the next generation must know, as JSON. Call it after `close_generation`."""
        resolved = [ask for ask in self._asks.values() if ask.state is AskState.RESOLVED]
        closed = [key for key, child in self._children.items() if not child.open]
        forgotten = frozenset(closed[:-CLOSED_CARRIED_MAX])
        return {
            "counts": self._counts,
            "seen": list(self._seen),
            "early": [command.model_dump(mode="json", exclude_none=True) for command in self._early],
            "closed": [[ask.spec.approval_id, ask.outcome] for ask in resolved[-CLOSED_CARRIED_MAX:]],
            "children": [
                {
                    "approval_id": child.approval_id,
                    "name": child.name,
                    "instance_id": child.instance_id,
                    "open": child.open,
                    "unanswered": [c.model_dump(mode="json") for c in child.unanswered.values()],
                }
                for key, child in self._children.items()
                if key not in forgotten
            ],
        }

    def close_generation(self) -> list[Effect]:
        """The run continues as new: its waits are gone, what came early is kept for the next generation."""
        return self._end_all()

    @classmethod
    def restore(cls, carried: Mapping[str, Any]) -> Book:
        """The book of the generation before, as `carried` wrote it."""
        book = cls()
        book._counts = dict(cast("dict[str, int]", carried["counts"]))
        book._seen = dict.fromkeys(cast("list[str]", carried["seen"]))
        book._early = [RaisedCommand.model_validate(command) for command in carried["early"]]
        for approval_id, outcome in carried["closed"]:
            spec = AskSpec(approval_id=approval_id, name=approval_id)
            book._asks[key_of(approval_id)] = _Ask(spec, AskState.RESOLVED, outcome)
        for child in carried["children"]:
            unanswered = [RaisedCommand.model_validate(command) for command in child["unanswered"]]
            book._children[key_of(child["approval_id"])] = _ChildAsk(
                child["approval_id"],
                child["name"],
                child["instance_id"],
                child["open"],
                {command.command_id: command for command in unanswered},
            )
        return book

    # Inside.

    def _remember(self, command_id: str) -> None:
        self._seen[command_id] = None
        if len(self._seen) > SEEN_MAX:
            del self._seen[next(iter(self._seen))]

    def _offer_early(self) -> list[Effect]:
        effects: list[Effect] = []
        waiting, self._early = self._early, []
        for command in waiting:
            taken = self._offer(command)
            if taken is None:
                self._early.append(command)
            else:
                effects += taken
        return effects

    def _offer(self, command: RaisedCommand) -> list[Effect] | None:
        """Effects of the command on the ask that it is for; None if there is none for it now."""
        if command.kind == "event":
            return self._offer_event(command)
        ask = self._asks.get(key_of(command.name))
        if ask is not None:
            return self._decide(ask, command)
        child = self._children.get(key_of(command.name))
        if child is None:
            return None
        if not child.open:
            return [Refused(child.approval_id, command.command_id, "already_resolved")]
        child.unanswered[command.command_id] = command
        return [Forward(child.instance_id, command)]

    def _offer_event(self, command: RaisedCommand) -> list[Effect] | None:
        for ask in self._unresolved_of(command.name):
            if ask.state is AskState.OPEN:
                return self._decide(ask, command)
        for child in self._children.values():
            if child.open and not child.unanswered and key_of(child.name) == key_of(command.name):
                child.unanswered[command.command_id] = command
                return [Forward(child.instance_id, command)]
        return None

    def _unresolved_of(self, name: str) -> list[_Ask]:
        return list(self._unresolved.get(key_of(name), {}).values())

    def _decide(self, ask: _Ask, command: RaisedCommand) -> list[Effect] | None:
        if ask.state is AskState.LAPSED:
            return None
        spec = ask.spec
        refusal = self._refusal(ask, command)
        if refusal is not None:
            return [Refused(spec.approval_id, command.command_id, refusal)]
        ask.votes.append(command)
        approved = approves(command)
        if approved and len(ask.votes) < spec.quorum:
            return []
        return [
            Deliver(spec.approval_id, command, approved, tuple(ask.votes)),
            *self._resolve(
                ask,
                "decide",
                "approved" if approved else "rejected",
                command_id=command.command_id,
                approver=command.approver,
                feedback=command.feedback,
            ),
        ]

    @staticmethod
    def _refusal(ask: _Ask, command: RaisedCommand) -> ApprovalRefusal | None:
        spec = ask.spec
        if ask.state is AskState.RESOLVED:
            return "expired" if ask.outcome == "expired" else "already_resolved"
        if command.digest is not None and spec.digest is not None and command.digest != spec.digest:
            return "stale"
        if spec.approvers is not None and command.approver not in spec.approvers:
            return "not_authorized"
        if spec.deadline is not None and command.time is not None and command.time > spec.deadline:
            return "expired"
        if spec.quorum > 1 and any(vote.approver == command.approver for vote in ask.votes):
            return "already_resolved"
        return None

    def _end_all(self) -> list[Effect]:
        effects: list[Effect] = []
        for named in list(self._unresolved.values()):
            for ask in list(named.values()):
                effects += self._end(ask, "end")
        return effects

    def _end(self, ask: _Ask, trigger: Trigger) -> list[Effect]:
        following = TRANSITIONS.get((ask.state, trigger))
        if following is None or following[1] is None:
            return []
        effects = self._resolve(ask, trigger, following[1])
        return effects + self._offer_early()

    def _resolve(
        self,
        ask: _Ask,
        trigger: Trigger,
        outcome: ApprovalOutcome,
        *,
        command_id: str | None = None,
        approver: str | None = None,
        feedback: str | None = None,
    ) -> list[Effect]:
        """End an ask. Each vote that counted is answered by the end, in the order in which they came."""
        following = TRANSITIONS.get((ask.state, trigger))
        if following is None:
            return []
        ask.state, ask.outcome = following[0], outcome
        earlier: list[Effect] = [
            Resolved(ask.spec.approval_id, outcome, vote.command_id, vote.approver, vote.feedback)
            for vote in ask.votes
            if vote.command_id != command_id
        ]
        self._unresolved[key_of(ask.spec.name)].pop(key_of(ask.spec.approval_id), None)
        return [*earlier, Resolved(ask.spec.approval_id, outcome, command_id, approver, feedback)]

    @staticmethod
    def _refuse_unanswered(child: _ChildAsk, reason: ApprovalRefusal) -> list[Effect]:
        refused: list[Effect] = [
            Refused(child.approval_id, command_id, reason) for command_id in child.unanswered
        ]
        child.unanswered.clear()
        return refused
