"""Orchestrations with large inputs, outputs and steps."""

from __future__ import annotations

import random
from typing import Any

from durabletask.task import ActivityContext, OrchestrationContext

Turns = Any


def text_of(size: int) -> str:
    """The same text for the same size, which does not compress to nothing."""
    return "".join(random.Random(size).choices("abcdefghijklmnopqrstuvwxyzäöü ", k=size))


def echo(_: OrchestrationContext, given: dict[str, Any]) -> dict[str, Any]:
    return given


def make(_: ActivityContext, size: int) -> str:
    return text_of(size)


def length(_: ActivityContext, text: str) -> int:
    return len(text)


def produce(ctx: OrchestrationContext, size: int) -> Turns:
    """The text goes out of one activity into another and is the output."""
    text = yield ctx.call_activity(make, input=size)
    count = yield ctx.call_activity(length, input=text)
    return {"count": count, "text": text}


def wait_and_produce(ctx: OrchestrationContext, given: dict[str, Any]) -> Turns:
    """Waits for `go`, then returns its input's text twice over in size."""
    yield ctx.wait_for_external_event("go")
    return {"text": given["text"], "made": (yield ctx.call_activity(make, input=given["size"]))}


def asks_by_child(ctx: OrchestrationContext, _: Any) -> Turns:
    """The length of the text that comes with the decision, which a child waits for."""
    return (yield ctx.call_sub_orchestrator(asks_for_text, input=None))


def asks_for_text(ctx: OrchestrationContext, _: Any) -> Turns:
    decided = yield ctx.wait_for_external_event("HumanApproval")
    return len(decided["text"])


def setup_worker(worker: Any) -> None:
    for orchestrator in (echo, produce, wait_and_produce, asks_by_child, asks_for_text):
        worker.add_orchestrator(orchestrator)
    for activity in (make, length):
        worker.add_activity(activity)
