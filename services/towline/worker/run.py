"""One execution of a run's orchestration: who it is, what it counts, and its voice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, cast

from durabletask import task
from durabletask.serialization import DataConverter
from pydantic import ValidationError

from towline.contracts import ids
from towline.contracts.durable import CHILD_ASK_EVENT, CancelCommand, ChildAsk, RunEnvelope
from towline.contracts.events import (
    ApprovalRefused,
    ApprovalRequested,
    ApprovalResolved,
    Event,
    EventData,
    RunProgressed,
    RunStarted,
    Usage,
)
from towline.telemetry.runs import RunRef
from towline.worker import sdk
from towline.worker.ask_model import Refused, Resolved
from towline.worker.book import Book
from towline.worker.turn import Publish, RaiseOn, Said, Waited, current_turn

if TYPE_CHECKING:
    from towline.worker.asks import Asks

_PROGRESS_STEP: Final = 10_000
"""Progress numbers that one turn may use; what a turn says must not depend on how often it was replayed,
so numbers are counted from the turn's place in the history and not from the calls made before it."""
_USAGE_FIELDS: Final = {
    "input_tokens": "input_token_count",
    "output_tokens": "output_token_count",
    "total_tokens": "total_token_count",
}


CHILDREN_CARRIED_MAX: Final = 256
"""Children of earlier generations that a cancel still reaches: whether they have ended nobody tells."""


def utc(moment: datetime) -> datetime:
    """Orchestrations know the time as naive UTC; events carry aware times."""
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment


@dataclass(slots=True)
class Counters:
    """What is counted over all generations of a run."""

    started_at: datetime | None = None
    generation: int = 1
    agent_turns: int = 0
    position: int = 0
    """Where the progress numbers of this generation begin."""
    usage: dict[str, int] = field(default_factory=dict[str, int])


class Run:
    """One execution (one replay included) of the orchestration of a run or of a run's child.

    Args:
        native: The SDK's orchestration context.
        envelope: What came with the input.
        converter: Serializer of the worker.
        source: CloudEvents source of what is said.
        agent_names: Agents' names by the lower-case ones that entities have.
    """

    def __init__(
        self,
        native: task.OrchestrationContext,
        envelope: RunEnvelope,
        *,
        converter: DataConverter,
        source: str,
        agent_names: Mapping[str, str] | None = None,
    ) -> None:
        self.agent_names = agent_names or {}
        """Agents' names by the lower-case ones that entities have."""
        self.native = native
        self.envelope = envelope
        self.converter = converter
        self.source = source
        self.counters, self.book, generation = _restore(envelope)
        self.earlier_children: list[str] = _earlier_children(envelope)
        """Children that may be left of earlier generations, by instance id."""
        self.is_first_generation = generation
        self.cancel: CancelCommand | None = None
        self.asks: Asks | None = None
        self.ended = False
        """The code has ended, or will never run again: what is said now is meant, replaying or not."""
        self.drops_events = False
        """The run continues as new and wants none of the events that wait for it."""
        self.child_prefix = "" if self.is_root else _prefix(native.instance_id, envelope.run_id)

    @property
    def ref(self) -> RunRef:
        """The run, as spans and logs name it."""
        return RunRef(self.envelope.run_id, self.envelope.run_type, self.envelope.session_id)

    @property
    def labels(self) -> dict[str, str]:
        """What names the run on an activity, whose worker knows no more than the activity's own request."""
        return self.ref.attributes()

    @property
    def is_root(self) -> bool:
        """Whether this is the run itself and not one of its children."""
        return self.envelope.role == "run"

    @property
    def now(self) -> datetime:
        """The orchestration's time: that of the turn's beginning, the same in every replay."""
        return utc(self.native.current_utc_datetime)

    def qualify(self, approval_id: str) -> str:
        """The id under which the world knows an ask of this orchestration."""
        return f"{self.child_prefix}~{approval_id}" if self.child_prefix else approval_id

    def next_agent_turn(self) -> str:
        """The number of the next agent call: "1", "2", in a child "{child}/1"."""
        self.counters.agent_turns += 1
        return self._agent_turn(self.counters.agent_turns)

    def _agent_turn(self, number: int) -> str:
        return str(number) if self.is_root else f"{self.child_prefix or self.native.instance_id}/{number}"

    def cancelled(self, command: CancelCommand) -> None:
        """Note that the run is cancelled; the agent calls that it has made so far are no longer wanted."""
        self.cancel = command
        turn = current_turn()
        if turn is not None and not self.native.is_replaying:
            turn.cancelled_calls = frozenset(
                self._agent_turn(number) for number in range(1, self.counters.agent_turns + 1)
            )

    def add_usage(self, details: Any) -> None:
        """Count the tokens that one agent turn reports (`usage_details` of its response)."""
        if not isinstance(details, dict):
            return
        reported = cast("dict[str, Any]", details)
        for name, reported_name in _USAGE_FIELDS.items():
            count = reported.get(reported_name)
            if isinstance(count, int) and count >= 0:
                self.counters.usage[name] = self.counters.usage.get(name, 0) + count

    def add_tokens(self, tokens: Mapping[str, int]) -> None:
        """Count the tokens that a child used."""
        for name, count in tokens.items():
            self.counters.usage[name] = self.counters.usage.get(name, 0) + count

    @property
    def usage(self) -> Usage | None:
        """Tokens counted so far; None if no model reported any."""
        return Usage(**self.counters.usage) if self.counters.usage else None

    def begin(self) -> None:
        """Note the beginning; announce it in the first generation of a run."""
        if self.counters.started_at is None:
            self.counters.started_at = self.now
        turn = current_turn()
        if not self.is_root or not self.is_first_generation or turn is None:
            return
        if self.native.is_replaying and not turn.repeats_beginning:
            return
        envelope = self.envelope
        data = RunStarted(
            run_id=envelope.run_id,
            run_type=envelope.run_type,
            session_id=envelope.session_id,
            tags=envelope.tags,
        )
        # Whichever turn says it, it is the same.
        said = self._publish(ids.started_id(envelope.run_id), data, time=self.counters.started_at)
        turn.outbox.append(said)

    def progressed(self, status: Any) -> None:
        """Announce a custom status (JSON)."""
        turn = current_turn()
        if turn is None or not self.is_root or self.native.is_replaying:
            return
        turn.progress_count += 1
        number = (self.counters.position + turn.position) * _PROGRESS_STEP + turn.progress_count
        run_id = self.envelope.run_id
        try:
            data = RunProgressed(run_id=run_id, status=status)
        except ValidationError:
            # NaN, say, which the SDK takes. Raised into the code it would be raised now, and not in replay.
            data = RunProgressed(run_id=run_id, status={"not_json": True})
        self.say(ids.progress_id(run_id, number), data)

    def requested(self, event: ApprovalRequested, name: str, *, suffix: str = "") -> None:
        """Announce an ask; in a child, tell the root of it too."""
        self.say(ids.approval_requested_id(event.run_id, event.approval_id) + suffix, event)
        self._tell_root(
            ChildAsk(approval_id=event.approval_id, instance_id=self.native.instance_id, name=name)
        )

    def resolved(self, effect: Resolved, answered: list[str] | None) -> None:
        """Announce how an ask ended; in a child, tell the root of it too.

        Args:
            effect: How it ended.
            answered: Ids of all commands that are answered by it; None: the root was told already.
        """
        run_id = self.envelope.run_id
        self.say(
            ids.approval_resolved_id(run_id, effect.approval_id, effect.command_id),
            ApprovalResolved(
                run_id=run_id,
                approval_id=effect.approval_id,
                outcome=effect.outcome,
                approver=effect.approver,
                feedback=effect.feedback,
            ),
        )
        if answered is not None:
            self._tell_root(
                ChildAsk(
                    approval_id=effect.approval_id,
                    instance_id=self.native.instance_id,
                    phase="resolved",
                    answered=answered,
                )
            )

    def waited(self, effect: Resolved, requested_at: datetime, decided_in: tuple[str, ...]) -> None:
        """Note how long an ask was open, and in which traces it was decided."""
        turn = current_turn()
        if turn is not None and (self.ended or not self.native.is_replaying):
            turn.waited.append(
                Waited(
                    approval_id=effect.approval_id,
                    outcome=effect.outcome,
                    requested_at=requested_at,
                    resolved_at=self.now,
                    traceparent=self.traceparent,
                    decided_in=decided_in,
                    approver=effect.approver,
                )
            )

    def refused(self, effect: Refused) -> None:
        """Announce that a command changed nothing."""
        run_id = self.envelope.run_id
        self.say(
            ids.approval_refused_id(run_id, effect.approval_id, effect.command_id),
            ApprovalRefused(run_id=run_id, approval_id=effect.approval_id, reason=effect.reason),
        )

    def say(self, event_id: str, data: EventData) -> None:
        """Put an event into the turn's outbox, unless the turn that said it is only replayed."""
        self._put(self._publish(event_id, data))

    def raise_on(self, instance_id: str, name: str, data: dict[str, Any]) -> None:
        """Put an external event for another instance into the turn's outbox."""
        self._put(RaiseOn(instance_id, name, data))

    @property
    def traceparent(self) -> str | None:
        """The trace that the run belongs to."""
        return sdk.trace_parent(self.native) or self.envelope.traceparent

    def carried(self, children: Sequence[str] = ()) -> dict[str, Any]:
        """What the next generation gets in its envelope. `children`: those that this one leaves running."""
        turn = current_turn()
        position = 0 if turn is None else turn.position
        return {
            "started_at": None if self.counters.started_at is None else self.counters.started_at.isoformat(),
            "generation": self.counters.generation + 1,
            "agent_turns": self.counters.agent_turns,
            "position": self.counters.position + position + 1,
            "usage": self.counters.usage,
            "children": [*self.earlier_children, *children][-CHILDREN_CARRIED_MAX:],
            "book": self.book.carried(),
        }

    def _publish(self, event_id: str, data: EventData, *, time: datetime | None = None) -> Publish:
        return Publish(
            Event(
                id=event_id,
                source=self.source,
                data=data,
                time=time,
                traceparent=self.traceparent,
                tracestate=self.envelope.tracestate,
            )
        )

    def _tell_root(self, notice: ChildAsk) -> None:
        if not self.is_root:
            self.raise_on(self.envelope.run_id, CHILD_ASK_EVENT, notice.model_dump(mode="json"))

    def _put(self, said: Said) -> None:
        turn = current_turn()
        if turn is not None and (self.ended or not self.native.is_replaying):
            turn.outbox.append(said)


def _restore(envelope: RunEnvelope) -> tuple[Counters, Book, bool]:
    carried = envelope.carried
    if not isinstance(carried, dict):
        return Counters(), Book(), True
    state = cast("dict[str, Any]", carried)
    started_at = state["started_at"]
    counters = Counters(
        started_at=None if started_at is None else datetime.fromisoformat(started_at),
        generation=state.get("generation", 2),
        agent_turns=state["agent_turns"],
        position=state["position"],
        usage=dict(state["usage"]),
    )
    return counters, Book.restore(state["book"]), False


def _earlier_children(envelope: RunEnvelope) -> list[str]:
    carried = envelope.carried
    return cast("list[str]", carried.get("children", [])) if isinstance(carried, dict) else []


def _prefix(instance_id: str, run_id: str) -> str:
    """What tells a child from its root: the rest of its instance id, ``run:0001:0002`` → ``0001.0002``."""
    rest = instance_id.removeprefix(run_id) if instance_id.startswith(f"{run_id}:") else instance_id
    return ".".join(part for part in rest.split(":") if part)
