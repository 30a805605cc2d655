"""Control commands against a run that moves on by itself: `CONTROL` keeps its promises, however they mix."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import get_args

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from towline.bridge.core import CONTROL, ControlStep, refusal, standing
from towline.contracts.durable import RunEnvelope
from towline.contracts.events import ControlAction

NOW = datetime(2030, 1, 1, tzinfo=UTC)
ENDED = ("completed", "failed", "terminated")


class ControlMachine(RuleBasedStateMachine):
    """The model is the scheduler's: a phase, and whether a cancel is in the run's history."""

    def __init__(self) -> None:
        super().__init__()
        self.phase: str | None = None
        self.start_at: datetime | None = None
        self.now = NOW
        self.cancelled = False
        self.outcomes = 0

    @precondition(lambda self: self.phase is None)
    @rule(later=st.booleans())
    def request(self, later: bool) -> None:
        self.phase = "pending"
        self.start_at = NOW + timedelta(hours=1) if later else None

    @rule()
    def time_passes(self) -> None:
        self.now += timedelta(hours=2)

    @precondition(lambda self: self.phase in ("pending", "running"))
    @rule(completes=st.booleans())
    def turn(self, completes: bool) -> None:
        """A worker takes the run's next turn, as soon as the run may have one."""
        if self.start_at is not None and self.start_at > self.now:
            return
        self.phase = "failed" if self.cancelled else "completed" if completes else "running"
        self.outcomes += self.phase in ENDED

    @rule(action=st.sampled_from(get_args(ControlAction)))
    def command(self, action: ControlAction) -> None:
        envelope = None
        if self.phase is not None:
            envelope = RunEnvelope(run_id="r", run_type="t", start_at=self.start_at)
        was, where = self.phase, standing(self.phase, envelope, now=self.now)
        step = CONTROL[action, where]
        self.carry_out(step)
        if was is None:
            assert step is ControlStep.WAIT
            assert refusal(where) == "unknown_run"
        elif was in ENDED:
            assert step is ControlStep.REFUSE
            assert refusal(where) == "already_finished"
        else:
            assert step not in (ControlStep.WAIT, ControlStep.REFUSE), "a live run takes every command"
            if action == "cancel":
                assert self.phase == "terminated" or self.cancelled
                assert self.phase != "suspended", "a suspended run never takes the turn that ends it"

    def carry_out(self, step: ControlStep) -> None:
        assert self.phase not in ENDED or step is ControlStep.REFUSE
        match step:
            case ControlStep.TERMINATE:
                assert self.phase == "pending", "its code may have run: it must have a chance to compensate"
                self.phase = "terminated"
                self.outcomes += 1
            case ControlStep.CANCEL | ControlStep.RESUME_AND_CANCEL:
                self.cancelled = True
                if step is ControlStep.RESUME_AND_CANCEL:
                    self.phase = "running"
            case ControlStep.SUSPEND:
                self.phase = "suspended"
            case ControlStep.RESUME:
                self.phase = "running" if self.phase == "suspended" else self.phase
            case ControlStep.WAIT | ControlStep.REFUSE:
                pass

    @invariant()
    def a_run_ends_once(self) -> None:
        assert self.outcomes == (self.phase in ENDED)


ControlMachine.TestCase.settings = settings(max_examples=80, stateful_step_count=20, deadline=None)
TestControl = ControlMachine.TestCase
