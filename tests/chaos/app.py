"""What the load runs. Each execution of an activity writes down its token; outputs list the tokens used."""

from __future__ import annotations

import json
import os
from datetime import timedelta
from typing import Any, Final
from uuid import uuid4

from agent_framework import Agent

from towline.testing.scripted import Reply, ScriptedChatClient
from towline.worker import App, RunCancelled, RunHandle, Steps

EFFECTS_VARIABLE: Final = "CHAOS_EFFECTS_FILE"
_PAUSE: Final = timedelta(milliseconds=200)

app = App("chaos")
app.agent(
    Agent(
        client=ScriptedChatClient(lambda call: Reply(text=f"echo {call.text}")), name="Echo", instructions=""
    )
)


@app.activity
def act(call: dict[str, str]) -> str:
    """One effect: a line appended to a file, in one write. It outlives the process that wrote it."""
    token = uuid4().hex
    line = json.dumps({**call, "token": token}) + "\n"
    file = os.open(os.environ[EFFECTS_VARIABLE], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(file, line.encode())
    finally:
        os.close(file)
    return token


def step(run: RunHandle, name: str) -> Any:
    """The task of one execution of `act`."""
    return run.activity(act, {"run_id": run.id, "step": name})


@app.orchestration
def count(run: RunHandle, value: Any) -> Steps[Any]:
    """Activities and timers, one after the other."""
    used: list[str] = []
    for number in range(value["steps"]):
        used.append((yield step(run, f"step-{number}")))
        run.status({"done": number + 1})
        yield run.sleep(_PAUSE)
    return {"total": sum(range(value["steps"])), "used": used}


@app.orchestration
def family(run: RunHandle, value: Any) -> Steps[Any]:
    """A child that counts."""
    before = yield step(run, "before")
    output = yield run.child(count, value)
    return {**output, "used": [before, *output["used"]]}


@app.orchestration
def review(run: RunHandle, _: Any) -> Steps[Any]:
    """A person decides what comes of a draft."""
    draft = yield step(run, "draft")
    decision = yield run.approval(title="Publish?", details=draft)
    done = yield step(run, "publish" if decision.approved else "discard")
    return {"approved": decision.approved, "used": [draft, done]}


@app.orchestration
def wait(run: RunHandle, _: Any) -> Steps[Any]:
    """Books, waits for ever, and undoes the booking when it is cancelled."""
    booked = yield step(run, "booked")
    try:
        yield run.event("never")
    except RunCancelled:
        yield step(run, "undone")
        raise
    return {"used": [booked]}
