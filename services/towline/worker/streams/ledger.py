"""What has to be written to which run's stream, as pure state: no thread, no clock, no Redis.

Feeders record what a turn says; `due` turns it into batches; `acknowledge` takes Redis's answers.
The rules that keep every reader's assembled text equal to the final text:

- A turn keeps its whole text until it is done. So a batch is a range of it, however much piled up, and a
  stream that lost its tail (Redis came back older than it was) gets `reset` and the whole text again.
- One batch of a run is under way at a time and stays byte for byte the same until it is answered; with its
  sequence number a repeat after a broken connection is recognised by the script.
- Text beyond the limits is dropped, oldest first by turn: readers get `reset`, then the `message` alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Final, Literal, TypeAlias, cast

from towline.worker.halves import mended_text

Kind: TypeAlias = Literal["begin", "restore", "reset", "token", "tool_call", "message", "close"]
AnswerStatus: TypeAlias = Literal["ok", "repeated", "lost", "ended"]

_TURNS_MAX: Final = 50_000
"""Most turns kept at once; beyond it a turn is not written at all."""
_OPEN_TURN_IDLE_MAX_S: Final = 3600.0
"""A turn of which nothing was heard for so long is forgotten: whoever ran it is gone."""


@dataclass(frozen=True, slots=True)
class Operation:
    """One step of the append script. The entry's data is `prefix` + attempt + `suffix`."""

    kind: Kind
    turn: str
    owner: str
    attempt: int = 0
    prefix: str = ""
    suffix: str = ""

    def arguments(self) -> tuple[str, ...]:
        """The step as script arguments."""
        return (self.kind, self.turn, self.owner, str(self.attempt), self.prefix, self.suffix)


@dataclass(frozen=True, slots=True)
class Batch:
    """What is appended to one run's stream in one step, all or nothing."""

    run_id: str
    writer: str
    sequence: int
    operations: tuple[Operation, ...]

    @property
    def chars(self) -> int:
        """Length of its text, to bound a pipeline."""
        return sum(len(operation.suffix) for operation in self.operations)


@dataclass(frozen=True, slots=True)
class Answer:
    """What the append script answered."""

    status: AnswerStatus
    attempts: Sequence[tuple[str, int]] = ()
    """Owner and attempt of turns that began; attempt 0: the turn belongs to a later attempt."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool that the agent called."""

    name: str
    arguments: str | None
    """JSON, or whatever text the model sent for arguments."""


@dataclass(slots=True, eq=False)
class Turn:
    """One execution of one agent turn."""

    run_id: str
    turn: str
    agent: str
    owner: str
    heard_at: float
    items: list[str | ToolCall] = field(default_factory=list[str | ToolCall])
    """Everything said so far, in order."""
    chars: int = 0
    written: int = 0
    """How many of `items` are in a batch already."""
    offset: int = 0
    """Characters of text in a batch already, in this attempt."""
    attempt: int = 0
    begun: bool = False
    restoring: bool = False
    """Everything is to be sent again, behind a `reset`."""
    reset_reason: str | None = None
    """A `reset` has to be sent before anything else, for this reason."""
    muted: bool = False
    """Text was dropped: nothing but `reset` and the message makes sense."""
    final: str | None = None
    failure: tuple[str, str, str] | None = None
    """Reason (failed, cancelled), error type and message."""
    ended: bool = False
    closed: bool = False
    """The end is in a batch."""

    @property
    def dirty(self) -> bool:
        """Something of it is in no batch yet."""
        return not self.begun or self.written < len(self.items) or (self.ended and not self.closed)


@dataclass(slots=True)
class _Run:
    run_id: str
    writer: str
    sequence: int = 0
    turns: dict[str, Turn] = field(default_factory=dict[str, Turn])
    under_way: Batch | None = None
    dirty: bool = False
    verify: bool = False


class Ledger:
    """State of all turns that this process writes. Not thread-safe: the caller locks.

    Args:
        writer: Unique name of this process's writer.
        turn_chars_max: Longest text kept of an unfinished turn.
        total_chars_max: Most text kept over all turns.
        remember_s: How long a finished turn is kept after it was written.
    """

    def __init__(self, writer: str, *, turn_chars_max: int, total_chars_max: int, remember_s: float) -> None:
        self._writer = writer
        self._turn_chars_max = turn_chars_max
        self._total_chars_max = total_chars_max
        self._remember_s = remember_s
        self._runs: dict[str, _Run] = {}
        self._dirty: dict[str, _Run] = {}
        self._serial = 0
        self._turn_count = 0
        self.chars = 0
        """Text kept now."""
        self.dropped_turns = 0
        self.fenced_turns = 0

    # What turns say -------------------------------------------------------------------------------

    def open(self, run_id: str, turn: str, agent: str, *, now: float, wall_ms: int = 0) -> Turn:
        """Begin an execution of `turn`; an earlier execution here is superseded.

        Args:
            run_id: The run.
            turn: The turn's number.
            agent: The agent's name.
            now: Monotonic seconds.
            wall_ms: Milliseconds since 1970. Of two executions that had the same attempt, because Redis lost
                the one before the other began, the one that began later has the turn.
        """
        opened = Turn(run_id, turn, agent, f"{wall_ms:014d}-{self._next_name()}", now)
        if self._turn_count >= _TURNS_MAX:
            self.dropped_turns += 1
            return opened
        run = self._runs.get(run_id)
        if run is None:
            run = self._runs[run_id] = _Run(run_id, self._next_name())
        if turn in run.turns:
            self._drop(run, run.turns[turn])
        run.turns[turn] = opened
        self._turn_count += 1
        self._mark(run)
        return opened

    def say(self, turn: Turn, item: str | ToolCall, *, now: float) -> None:
        """The agent produced text or called a tool."""
        run = self._current(turn)
        if run is None or turn.ended or turn.muted or item == "":
            return
        turn.heard_at = now
        turn.items.append(item)
        if isinstance(item, str):
            turn.chars += len(item)
            self.chars += len(item)
            if turn.chars > self._turn_chars_max or self.chars > self._total_chars_max:
                self._mute(turn)
        self._mark(run)

    def finish(self, turn: Turn, text: str, *, now: float) -> None:
        """The turn is done and this is its whole text."""
        run = self._current(turn)
        if run is None or turn.ended:
            return
        turn.heard_at, turn.ended = now, True
        if self.chars + len(text) > 2 * self._total_chars_max:
            self._mute(turn)
            turn.failure = ("dropped", "TextTooLong", "the text did not fit while Redis was away")
        else:
            turn.final = text
            self.chars += len(text)
        self._mark(run)

    def fail(self, turn: Turn, reason: str, error_type: str, message: str, *, now: float) -> None:
        """The turn ended without a text: what readers have of it is void."""
        run = self._current(turn)
        if run is None or turn.ended:
            return
        turn.heard_at, turn.ended = now, True
        turn.failure = (reason, error_type, message)
        self._mark(run)

    # What has to be written -----------------------------------------------------------------------

    @property
    def idle(self) -> bool:
        """Nothing waits to be written or answered."""
        return not self._dirty

    @property
    def remembered(self) -> bool:
        """Some run is kept, so that a loss of its stream can still be mended."""
        return bool(self._runs)

    def due(self) -> list[Batch]:
        """Batches to write now: those not answered yet, as they were, and new ones."""
        batches: list[Batch] = []
        for run in list(self._dirty.values()):
            if run.under_way is None:
                operations = tuple(self._operations(run))
                if not operations and not run.verify:
                    del self._dirty[run.run_id]
                    continue
                run.verify = False
                run.sequence += 1
                run.under_way = Batch(run.run_id, run.writer, run.sequence, operations)
            batches.append(run.under_way)
        return batches

    def acknowledge(self, batch: Batch, answer: Answer) -> None:
        """Redis's answer to `batch`."""
        run = self._runs.get(batch.run_id)
        if run is None or run.under_way is not batch:
            return
        run.under_way = None
        if answer.status == "ended":
            self._forget(run)
            return
        if answer.status == "lost":
            self._restore(run)
            return
        attempts = dict(answer.attempts)
        for turn in list(run.turns.values()):
            attempt = attempts.get(turn.owner)
            if attempt == 0:
                self.fenced_turns += 1
                self._drop(run, turn)
            elif attempt is not None:
                turn.attempt = attempt
        if not any(turn.dirty for turn in run.turns.values()) and not run.verify:
            self._dirty.pop(run.run_id, None)

    def clear(self) -> None:
        """Forget everything."""
        for run in list(self._runs.values()):
            self._forget(run)

    def abandon(self, batch: Batch) -> None:
        """Redis refuses `batch` for good: give the run's stream up."""
        run = self._runs.get(batch.run_id)
        if run is not None and run.under_way is batch:
            self._forget(run)

    def verify(self) -> None:
        """Redis was away: check every run remembered for a stream that lost its tail."""
        for run in self._runs.values():
            run.verify = True
            self._dirty[run.run_id] = run

    def expire(self, *, now: float) -> None:
        """Forget turns that are done, and those of which nothing was heard for an hour."""
        for run in list(self._runs.values()):
            if run.under_way is not None:
                continue
            for turn in list(run.turns.values()):
                limit = self._remember_s if turn.closed else _OPEN_TURN_IDLE_MAX_S
                if now - turn.heard_at > limit and not (turn.ended and not turn.closed):
                    self._drop(run, turn)
            if not run.turns:
                self._forget(run)

    # Inside ---------------------------------------------------------------------------------------

    def _next_name(self) -> str:
        self._serial += 1
        return f"{self._writer}.{self._serial}"

    def _current(self, turn: Turn) -> _Run | None:
        run = self._runs.get(turn.run_id)
        return run if run is not None and run.turns.get(turn.turn) is turn else None

    def _mark(self, run: _Run) -> None:
        self._dirty[run.run_id] = run

    def _mute(self, turn: Turn) -> None:
        self.dropped_turns += 1
        self.chars -= turn.chars
        turn.items, turn.chars, turn.written, turn.offset = [], 0, 0, 0
        turn.muted, turn.reset_reason = True, "dropped"

    def _drop(self, run: _Run, turn: Turn) -> None:
        self._turn_count -= 1
        self.chars -= turn.chars + len(turn.final or "")
        turn.items, turn.chars, turn.final = [], 0, None
        del run.turns[turn.turn]

    def _forget(self, run: _Run) -> None:
        for turn in list(run.turns.values()):
            self._drop(run, turn)
        self._runs.pop(run.run_id, None)
        self._dirty.pop(run.run_id, None)

    def _restore(self, run: _Run) -> None:
        """Redis came back older than it was: begin anew under another writer name, with all that is known."""
        run.writer, run.sequence = self._next_name(), 0
        for turn in run.turns.values():
            # A turn whose beginning was never confirmed begins again: it may have to outbid an older attempt.
            turn.begun = turn.restoring = turn.attempt > 0
            turn.written, turn.offset, turn.closed = 0, 0, False
            if turn.muted:
                turn.reset_reason = None
        self._mark(run)

    def _operations(self, run: _Run) -> Iterator[Operation]:
        for turn in run.turns.values():
            yield from _turn_operations(turn)
            if turn.closed and turn.chars:
                # The message says it all from here on.
                self.chars -= turn.chars
                turn.items = [item for item in turn.items if isinstance(item, ToolCall)]
                turn.chars, turn.written = 0, len(turn.items)


def _json(value: object) -> str:
    return mended_text(json.dumps(value, ensure_ascii=False, separators=(",", ":")))


def _turn_operations(turn: Turn) -> Iterator[Operation]:
    """Steps that bring the stream up to what the turn has said; marks them as written."""
    prefix = f'{{"agent":{_json(turn.agent)},"turn":{_json(turn.turn)},"attempt":'

    def step(kind: Kind, fields: str = "") -> Operation:
        return Operation(kind, turn.turn, turn.owner, turn.attempt, prefix, f"{fields}}}")

    if not turn.begun:
        turn.begun = True
        yield step("begin", ',"reason":"attempt"')
    elif turn.restoring:
        turn.restoring = False
        yield step("restore", ',"reason":"restored"')
    if turn.reset_reason is not None:
        yield step("reset", f',"reason":{_json(turn.reset_reason)}')
        turn.reset_reason = None
    if turn.closed:
        return
    if turn.failure is None or turn.failure[0] != "dropped":
        yield from _said(turn, step)
    if not turn.ended:
        return
    if turn.final is not None:
        yield step("message", f',"text":{_json(turn.final)}')
    elif turn.failure is not None:
        reason, error_type, message = turn.failure
        error = _json({"type": error_type, "message": message})
        yield step("reset", f',"reason":{_json(reason)},"error":{error}')
    yield Operation("close", turn.turn, turn.owner)
    turn.closed = True


def _said(turn: Turn, step: Callable[[Kind, str], Operation]) -> Iterator[Operation]:
    """Text and tool calls not written yet; adjoining text becomes one entry, and one item from now on."""
    merged: list[str | ToolCall] = []
    for is_text, group in groupby(turn.items[turn.written :], key=lambda item: isinstance(item, str)):
        if is_text:
            merged.append("".join(cast("Iterator[str]", group)))
        else:
            merged.extend(group)
    turn.items[turn.written :] = merged
    turn.written = len(turn.items)
    for item in merged:
        if isinstance(item, str):
            yield step("token", f',"text":{_json(item)},"offset":{turn.offset}')
            turn.offset += len(item)
        elif item.arguments is None:
            yield step("tool_call", f',"name":{_json(item.name)}')
        else:
            yield step("tool_call", f',"name":{_json(item.name)},"arguments":{_json(item.arguments)}')
