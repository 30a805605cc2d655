"""One run type that asks, one agent."""

from __future__ import annotations

from typing import Any

from agent_framework import Agent

from towline.testing.scripted import Reply, ScriptedChatClient
from towline.worker import App, RunHandle, Steps

app = App("secured")
app.agent(
    Agent(client=ScriptedChatClient(lambda call: Reply(text=call.text)), name="Echo", instructions="Echo.")
)


@app.orchestration
def ask(run: RunHandle, value: Any) -> Steps[Any]:
    decision = yield run.approval(name="release", title=value["text"][:20])
    return {"approved": decision.approved, "length": len(value["text"])}
