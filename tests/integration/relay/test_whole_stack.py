"""Real agents behind the relay: HTTP in, tokens and outcome out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
from tests.integration.relay.reading import assemble, read_sse

StackFactory = Callable[..., Any]


async def test_a_run_started_over_http_streams_its_tokens_and_its_end(
    stack: StackFactory, http: httpx.AsyncClient
) -> None:
    started = stack("examples.streaming.app:setup_worker")
    url = started.relay_url
    answer = await http.post(
        f"{url}/runs", json={"run_type": "agent.TravelPlanner", "input": {"message": "Three days in Lisbon"}}
    )
    assert answer.status_code == 202, answer.text
    links = answer.json()["links"]
    events = await asyncio.wait_for(read_sse(http, f"{url}{links['stream']}"), 60)
    assert events[-1].event == "end"
    assembled = assemble((event.event, event.data) for event in events)
    assert not assembled.wrong
    [text] = assembled.final.values()
    assert events[-1].data["output"]["text"] == text
    assert sum(event.event == "token" for event in events) > 3
    assert sorted(next(iter(assembled.tool_calls.values()))) == ["get_events", "get_forecast"]
    run = (await http.get(f"{url}{links['run']}")).json()
    assert run["status"] == "completed"
    assert run["output"]["text"] == text
