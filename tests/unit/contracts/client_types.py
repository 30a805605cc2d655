"""Never run: pyright checks that the client's public surface has the types that users rely on."""

from __future__ import annotations

from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any, assert_type

from towline.contracts import (
    Event,
    EventData,
    EventStream,
    KafkaSettings,
    Run,
    RunCancelled,
    RunCompleted,
    RunFailed,
    RunFailedError,
    RunOutcome,
    RunRejected,
    TowlineClient,
    decode,
)


async def whole_surface() -> None:
    async with TowlineClient(KafkaSettings(), source="tests") as client:
        run = await client.start(
            "agent.Writer",
            {"message": "hi", "options": [1, 2.5, None]},
            run_id="r",
            session_id="s",
            requested_by="me",
            start_at=datetime.now(UTC),
            expires_at=datetime.now(UTC),
            tags={"a": "b"},
        )
        assert_type(run, Run)
        assert_type(run.run_id, str)
        assert_type(await run.result(timeout=1.5), Any)
        outcome = await run.outcome(timeout=2)
        assert_type(outcome, Event[RunOutcome])
        match outcome.data:
            case RunCompleted():
                assert_type(outcome.data.finished_at, datetime)
            case RunFailed() | RunRejected():
                assert_type(outcome.data.error.message, str)
            case RunCancelled():
                assert_type(outcome.data.reason, str | None)
        async for event in run.events():
            assert_type(event, Event[EventData])
        async with aclosing(run.events()) as events:
            assert_type(await anext(events), Event[EventData])
        assert_type(await run.approve("ask", feedback="fine", data={"n": 1}), str)
        assert_type(await run.reject("ask", approver="me", digest="d"), str)
        assert_type(await run.raise_event("Paid", {"amount": 1}), str)
        assert_type(await run.cancel("why"), str)
        assert_type(await run.suspend(), str)
        assert_type(await run.resume(), str)
        assert_type(client.run("r", since=datetime.now(UTC)), Run)
        assert_type(client.results("group"), EventStream[RunOutcome])
        assert_type(client.events(start="latest"), EventStream[EventData])
        async with client.results() as results:
            async for result in results:
                assert_type(result.data.run_id, str)
        try:
            await run.result()
        except RunFailedError as error:
            assert_type(error.event, Event[RunFailed])
    assert_type(decode(value=b"", headers=[("a", None)]), Event[EventData])
