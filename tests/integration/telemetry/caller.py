"""A service of a user, as a process: starts a review in a given trace, approves it, consumes its outcome.

``python caller.py RUN_ID TRACEPARENT``: TOWLINE_KAFKA_* and OTEL_* come from the environment. Prints what it
saw as one JSON object.
"""

from __future__ import annotations

import asyncio
import json
import sys

from opentelemetry import trace

from towline.contracts.client import TowlineClient
from towline.contracts.events import ApprovalRequested, RunCompleted
from towline.telemetry import set_up
from towline.telemetry.propagation import in_trace

tracer = trace.get_tracer("caller")


async def main(run_id: str, traceparent: str) -> None:
    async with TowlineClient(source="test/caller") as client:
        results, events = client.results(f"{run_id}.results"), client.events()
        with in_trace(traceparent):
            run = await client.start("review", "SECRET-PROMPT topic", run_id=run_id, session_id="session-1")
        async for event in events:
            if isinstance(event.data, ApprovalRequested) and event.data.run_id == run_id:
                break
        await events.aclose()
        # A person's browser has a trace of its own.
        with tracer.start_as_current_span("the approver's click") as click:
            await run.approve("HumanApproval", approver="ann")
            approver_trace = f"{click.get_span_context().trace_id:032x}"
        await run.result(timeout=60)
        outcome = await run.outcome()
        async for result in results:
            if isinstance(result.data, RunCompleted) and result.data.run_id == run_id:
                with tracer.start_as_current_span("downstream work"):
                    pass
                break
        await results.aclose()
    print(json.dumps({"approver_trace": approver_trace, "outcome_traceparent": outcome.traceparent}))


if __name__ == "__main__":
    with set_up("caller"):
        asyncio.run(main(*sys.argv[1:]))
