"""A Restate service for plain runs, a Restate workflow with a durable promise for approvals.

Served by Hypercorn; Restate's own Kafka subscriptions call the handlers.
"""

from __future__ import annotations

from typing import TypedDict

import restate
from benchmarks.end_to_end.job import make_agent
from benchmarks.end_to_end.peers.says import say

agent = make_agent()


class Request(TypedDict):
    run_id: str
    message: str


class Decision(TypedDict):
    run_id: str
    approved: bool


async def ask(message: str) -> str:
    return (await agent.run(message)).text


answers = restate.Service("answers")


@answers.handler()
async def answer(ctx: restate.Context, request: Request) -> None:
    text = await ctx.run_typed("agent", ask, message=request["message"])
    await ctx.run_typed("publish", say, run_id=request["run_id"], facts={"output": text})


approved = restate.Workflow("approved")


@approved.main()
async def run(ctx: restate.WorkflowContext, request: Request) -> None:
    await ctx.run_typed("announce", say, run_id=request["run_id"], facts={"asks": "approval"})
    decision = await ctx.promise("approval", type_hint=Decision).value()
    if not decision["approved"]:
        raise restate.TerminalError("rejected")
    text = await ctx.run_typed("agent", ask, message=request["message"])
    await ctx.run_typed("publish", say, run_id=request["run_id"], facts={"output": text})


@approved.handler()
async def decide(ctx: restate.WorkflowSharedContext, decision: Decision) -> None:
    await ctx.promise("approval", type_hint=Decision).resolve(decision)


app = restate.app([answers, approved])
