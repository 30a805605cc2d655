"""Inputs and outputs of 10 MB through the whole stack; a payload store that is away, or has lost things."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from tests.integration.contracts.raw import read_all
from tests.integration.payloads.apps import text_of
from tests.integration.wire.raw import Wire
from tests.waiting import eventually_async

from towline.contracts import (
    ApprovalRequested,
    DataElsewhereError,
    RunCompleted,
    RunFailedError,
    RunRequested,
    TowlineClient,
    encode,
)
from towline.contracts.events import Event
from towline.contracts.payloads import PayloadReference
from towline.contracts.settings import PayloadSettings, SchedulerSettings
from towline.dev.stack import Stack
from towline.testing import TestKitError, record, replay

APP = "tests.integration.payloads.apps:setup_worker"
TASKHUB = "TOWLINE_SCHEDULER_TASKHUB"
TEN_MB = 10_000_000
WAIT_S = 60


@pytest.fixture(scope="module")
def large(module_stack: Callable[..., Stack]) -> Stack:
    return module_stack(APP)


def client(stack: Stack) -> TowlineClient:
    return TowlineClient(stack.kafka, source="tests/payloads", payloads=stack.payloads)


def payloads_folder(stack: Stack) -> Path:
    return Path(stack.payloads_url.removeprefix("file://"))


def wire(stack: Stack) -> Wire:
    return Wire(stack.kafka.bootstrap, stack.kafka.topic_prefix)


async def get_run(stack: Stack, run_id: str) -> dict[str, Any]:
    async with httpx.AsyncClient(timeout=30) as http, asyncio.timeout(WAIT_S):
        while True:
            answer = await http.get(f"{stack.relay_url}/runs/{run_id}")
            if answer.status_code == 200 and answer.json().get("status") not in {"pending", "running"}:
                return answer.json()
            await asyncio.sleep(0.05)


async def test_an_output_of_10_mb_completes_and_comes_back_equal_by_client_and_by_relay(large: Stack) -> None:
    expected = {"count": TEN_MB, "text": text_of(TEN_MB)}
    async with client(large) as towline:
        run = await towline.start("produce", TEN_MB)
        assert await run.result(WAIT_S) == expected
        [*_, outcome] = [event async for event in run.events()]
        assert isinstance(outcome.data, RunCompleted)
        assert outcome.data.output == expected
    described = await get_run(large, run.run_id)
    assert described["status"] == "completed"
    assert described["output"] == expected
    assert described["dataref"].startswith("towline-payload:sha256:")

    [record] = [
        record
        for record in await read_all(large.kafka, large.kafka.topics.results)
        if record.key == run.run_id.encode()
    ]
    headers = dict(record.headers)
    assert record.value is None
    assert PayloadReference.parse(headers["ce_dataref"].decode()) is not None
    assert headers["ce_subject"].decode() == run.run_id


async def test_an_input_of_10_mb_starts_a_run_and_histories_stay_small(large: Stack) -> None:
    given = {"text": text_of(TEN_MB)}
    async with client(large) as towline:
        run = await towline.start("echo", given)
        assert await run.result(WAIT_S) == given
        again = await towline.start("echo", given, run_id=run.run_id)
        assert await again.result(WAIT_S) == given, "the same content again is the same request"


async def test_a_decision_with_10_mb_of_data_reaches_the_child_that_asks(large: Stack) -> None:
    async with client(large) as towline:
        run = await towline.start("asks_by_child", None)
        async for event in run.events():
            if isinstance(event.data, ApprovalRequested):
                await run.approve(event.data.approval_id, data={"text": text_of(TEN_MB)})
                break
        assert await run.result(WAIT_S) == TEN_MB


async def test_a_run_with_large_data_is_recorded_with_it_and_replays(large: Stack) -> None:
    given = {"text": text_of(500_000)}
    async with client(large) as towline:
        run = await towline.start("echo", given)
        assert await run.result(WAIT_S) == given
    scheduler = SchedulerSettings(address=large.scheduler_address, taskhub=large.plan.settings[TASKHUB])
    with pytest.raises(TestKitError, match="set TOWLINE_PAYLOADS_URL"):
        record(scheduler, run.run_id)
    replay(APP, record(scheduler, run.run_id, payloads=large.payloads), outputs=True)


async def test_a_reader_without_a_store_is_told_which_setting_is_missing(large: Stack) -> None:
    async with client(large) as towline:
        run = await towline.start("produce", 1_500_000)
        await run.result(WAIT_S)
    async with TowlineClient(large.kafka, payloads=PayloadSettings(url=None)) as poor:
        with pytest.raises(DataElsewhereError, match="TOWLINE_PAYLOADS_URL"):
            await poor.run(run.run_id).result(WAIT_S)


async def test_requests_whose_reference_leads_nowhere_or_elsewhere_become_dead_letters(large: Stack) -> None:
    dangling = str(PayloadReference("0" * 64, 12))
    hostile = {
        "file:///etc/passwd": "invalid_reference",
        "http://169.254.169.254/latest/meta-data/": "invalid_reference",
        "../../../../etc/passwd": "invalid_reference",
        f"towline-payload:sha256:{'../' * 21}a:1": "invalid_reference",
        f"{dangling}\u2028": "invalid_reference",
        dangling: "payload_missing",
    }
    async with wire(large) as raw:
        for reference, reason in hostile.items():
            run_id = f"hostile-{uuid4()}"
            await raw.send("runs", None, key=run_id, headers=_headers(run_id, reference))
            [letter] = await raw.until(lambda wanted=run_id: raw.dead_letters(wanted), reference)
            assert letter.headers["towline_dead_letter_reason"] == reason, reference
            assert letter.headers["ce_dataref"] == reference
    async with client(large) as towline:
        assert await (await towline.start("echo", {"still": "served"})).result(WAIT_S)


async def test_while_the_store_is_away_requests_and_runs_wait_and_nothing_is_lost(large: Stack) -> None:
    folder = payloads_folder(large)
    aside = folder.with_name("payloads-aside")
    text = text_of(1_200_000)
    async with client(large) as towline, wire(large) as raw:
        waiting = await towline.start("wait_and_produce", {"text": text, "size": 2_000_000})
        await raw.asked(waiting.run_id, "go")
        request = RunRequested(run_id=f"away-{uuid4()}", run_type="echo", input={"text": text + "!"})
        event = Event(id=str(uuid4()), source="tests", data=request)
        record = encode(event)
        store = towline._payloads
        assert store is not None
        reference = await store.put(record.value or b"")
        shutil.move(folder, aside)
        try:
            await raw.send(
                "runs",
                None,
                key=request.run_id,
                headers=[*record.headers, ("ce_dataref", str(reference).encode())],
            )
            await waiting.raise_event("go")
            logs = [large[role].data / "log" for role in ("bridge", "worker")]
            await eventually_async(
                lambda: all("payload_store_away" in log.read_text() for log in logs), timeout_s=WAIT_S
            )
        finally:
            shutil.move(aside, folder)
        assert await waiting.result(WAIT_S) == {"text": text, "made": text_of(2_000_000)}
        assert await towline.run(request.run_id or "").result(WAIT_S) == request.input
        assert not [seen for seen in raw.seen if seen.topic == "dead-letters"]


async def test_a_run_whose_history_has_lost_a_payload_fails_and_says_so(large: Stack) -> None:
    async with client(large) as towline, wire(large) as raw:
        run = await towline.start("wait_and_produce", {"text": text_of(1_100_000), "size": 1})
        await raw.asked(run.run_id, "go")
        await asyncio.to_thread(large["worker"].kill)
        shutil.rmtree(payloads_folder(large))
        await asyncio.to_thread(large["worker"].start)
        await run.raise_event("go")
        with pytest.raises(RunFailedError, match="not in the payload store") as failed:
            await run.result(WAIT_S)
        assert failed.value.event.data.error.type == "PayloadMissingError"
        assert failed.value.event.data.run_type == "wait_and_produce"


def _headers(run_id: str, reference: str) -> list[tuple[str, bytes]]:
    return [
        ("ce_specversion", b"1.0"),
        ("ce_id", run_id.encode()),
        ("ce_source", b"tests"),
        ("ce_type", b"towline.run.requested.v1"),
        ("ce_subject", run_id.encode()),
        ("ce_dataref", reference.encode()),
    ]
