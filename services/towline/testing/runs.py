"""What tests of an app say about its runs: answer what they ask, and state what they must have said."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from typing import Any, Final, TypeAlias, cast

from pydantic import JsonValue

from towline.contracts.client import Run
from towline.contracts.events import ApprovalRequested, Event, EventData

PATIENCE_S: Final = 30.0

ExpectedEvent: TypeAlias = "str | type[EventData] | tuple[str | type[EventData], Mapping[str, Any]]"
"""``"run.started"``, ``RunStarted``, or either with fields: ``("run.completed", {"output": 7})``."""


async def approve_when_asked(
    run: Run,
    approval_id: str | None = None,
    *,
    approved: bool = True,
    feedback: str | None = None,
    data: dict[str, JsonValue] | None = None,
    approver: str | None = None,
    timeout_s: float = PATIENCE_S,
) -> ApprovalRequested:
    """Wait until `run` asks, and decide.

    Args:
        run: The run.
        approval_id: Waits for this ask; default: the run's first one.
        approved: False rejects.
        feedback: For the run.
        data: More fields for the run.
        approver: Who decides.
        timeout_s: Longest wait in seconds.

    Returns:
        What was asked.

    Raises:
        AssertionError: The run ended, or the time was over, before it asked.
    """
    asked: list[str] = []

    async def wait() -> ApprovalRequested:
        last: Event | None = None
        async with aclosing(cast("Any", run.events())) as events:
            async for event in events:
                if isinstance(event.data, ApprovalRequested):
                    asked.append(event.data.approval_id)
                    if approval_id in (None, event.data.approval_id):
                        return event.data
                last = event
        raise AssertionError(
            f"{run.run_id} ended without asking {approval_id or 'anything'}; it had asked {asked}. "
            f"Its end: {last}"
        )

    try:
        request = await asyncio.wait_for(wait(), timeout_s)
    except TimeoutError:
        raise AssertionError(
            f"{run.run_id} did not ask {approval_id or 'anything'} within {timeout_s:g} s; "
            f"it had asked {asked}"
        ) from None
    decide = run.approve if approved else run.reject
    await decide(request.approval_id, feedback=feedback, data=data, approver=approver, digest=request.digest)
    return request


async def reject_when_asked(
    run: Run,
    approval_id: str | None = None,
    *,
    feedback: str | None = None,
    approver: str | None = None,
    timeout_s: float = PATIENCE_S,
) -> ApprovalRequested:
    """Wait until `run` asks, and reject; otherwise like `approve_when_asked`."""
    return await approve_when_asked(
        run, approval_id, approved=False, feedback=feedback, approver=approver, timeout_s=timeout_s
    )


async def assert_events(
    run: Run, expected: Sequence[ExpectedEvent], *, exact: bool = False, timeout_s: float = PATIENCE_S
) -> list[Event]:
    """Wait for the end of `run`, and make sure that it said what is `expected`, in that order.

    Args:
        run: The run.
        expected: Names (``"run.completed"``) or models, with fields where they matter.
        exact: Nothing else may have been said in between; else more is fine.
        timeout_s: Longest wait for the run's end, in seconds.

    Returns:
        All of the run's events.

    Raises:
        AssertionError: What is missing or too much, beside what was said.
    """
    said: list[Event] = []

    async def read() -> None:
        async with aclosing(cast("Any", run.events())) as events:
            async for event in events:
                said.append(event)  # noqa: PERF401 - kept when the time is over

    try:
        await asyncio.wait_for(read(), timeout_s)
    except TimeoutError:
        raise AssertionError(f"{run.run_id} had not ended after {timeout_s:g} s. {shown(said)}") from None
    problem = difference(said, expected, exact=exact)
    assert problem is None, f"{run.run_id}: {problem}. {shown(said)}"
    return said


def difference(
    said: Sequence[Event], expected: Sequence[ExpectedEvent], *, exact: bool = False
) -> str | None:
    """What is wrong with `said`; None if nothing is. Pure."""
    position = 0
    for number, item in enumerate(expected):
        if exact:
            if number >= len(said) or not matches(said[number], item):
                found = name_of(said[number]) if number < len(said) else "nothing"
                return f"event {number + 1} is {found}, not {item!r}"
            continue
        found_at = next((i for i in range(position, len(said)) if matches(said[i], item)), None)
        if found_at is None:
            return f"no {item!r} after event {position}"
        position = found_at + 1
    if exact and len(said) > len(expected):
        return f"{name_of(said[len(expected)])} was not expected"
    return None


def matches(event: Event, expected: ExpectedEvent) -> bool:
    """Whether `event` is what is `expected`: its kind, and the fields that are given."""
    kind, fields = expected if isinstance(expected, tuple) else (expected, cast("Mapping[str, Any]", {}))
    if isinstance(kind, str):
        if kind not in (name_of(event), event.type):
            return False
    elif not isinstance(event.data, kind):
        return False
    data = event.data.model_dump()
    return all(name in data and data[name] == value for name, value in fields.items())


def name_of(event: Event) -> str:
    """The event's name without vendor and version: ``run.completed``."""
    return event.type.removeprefix("towline.").rpartition(".v")[0]


def shown(said: Sequence[Event]) -> str:
    """All of it, one a line, for messages."""
    lines = [
        f"  {n}. {name_of(e)} {e.data.model_dump(exclude_none=True)}" for n, e in enumerate(said, start=1)
    ]
    return "\n".join(["It said:", *lines]) if lines else "It said nothing."
