"""The page of docs/guide/streams.md in a real browser: tokens, reconnect, approve."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaConsumer
from playwright.async_api import Page, expect
from tests.integration.relay.conftest import Publisher, StartRelay

from towline.contracts.cloudevents import decode
from towline.contracts.events import ApprovalRefused
from towline.contracts.settings import KafkaSettings
from towline.worker.streams import TokenWriter

ROOT = Path(__file__).parents[2]


async def test_a_browser_shows_tokens_reconnects_and_approves(
    start_relay: StartRelay,
    writer: TokenWriter,
    publisher: Publisher,
    page: Page,
    kafka_settings: KafkaSettings,
    tmp_path: Path,
) -> None:
    relay = start_relay()
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    await publisher.started("r1")
    await page.goto(f"{relay.url}/follow?run=r1")
    text, status = page.locator("#text"), page.locator("#status")
    poet = writer.open("r1", 1, "Poet")
    poet.write("Roses 🌹 ")
    await expect(text).to_have_text("Poet: Roses 🌹", timeout=20_000)
    poet.write("open ")
    await expect(text).to_have_text("Poet: Roses 🌹 open", timeout=20_000)
    relay.restart()
    poet.write("are red")
    poet.finish("Roses 🌹 open are red")
    await expect(text).to_have_text("Poet: Roses 🌹 open are red", timeout=40_000)
    critic = writer.open("r1", 2, "Critic")
    critic.write("wrong from the st")
    await expect(text).to_contain_text("Critic: wrong from the st", timeout=20_000)
    writer.open("r1", 2, "Critic").finish("<b>Good</b>")
    await expect(text).to_have_text("Poet: Roses 🌹 open are red\n\nCritic: <b>Good</b>", timeout=20_000)
    await publisher.asked("r1", "ok", title="Publish the poem?", digest="d1")
    await page.get_by_role("button", name="Approve: Publish the poem?").click(timeout=20_000)
    decided = await _decision(kafka_settings)
    assert (decided.approval_id, decided.approved, decided.digest) == ("ok", True, "d1")
    await page.screenshot(path=str(tmp_path / "follow.png"))
    await publisher.resolved("r1", "ok")
    await expect(page.get_by_role("button")).to_have_count(0, timeout=20_000)
    await publisher.completed("r1")
    await expect(status).to_have_text("completed", timeout=20_000)
    assert complaints == []


async def _decision(kafka_settings: KafkaSettings) -> Any:
    consumer = AIOKafkaConsumer(
        kafka_settings.topics.approvals, **kafka_settings.connection(), auto_offset_reset="earliest"
    )
    await consumer.start()
    try:
        record = await asyncio.wait_for(consumer.getone(), 20)
    finally:
        await consumer.stop()
    return decode(key=record.key, value=record.value, headers=record.headers).data


async def test_text_beyond_the_basic_plane_comes_as_it_is_written_and_breaks_to_fit_the_window(
    start_relay: StartRelay, writer: TokenWriter, publisher: Publisher, page: Page
) -> None:
    await publisher.started("r1")
    await page.set_viewport_size({"width": 320, "height": 600})
    await page.goto(f"{start_relay().url}/follow?run=r1")
    poet = writer.open("r1", 1, "Poet")
    poet.write("🌹")
    await expect(page.locator("#text")).to_have_text("Poet: 🌹", timeout=20_000)
    poet.write("e" * 500)
    await expect(page.locator("#text")).to_have_text("Poet: 🌹" + "e" * 500, timeout=20_000)
    assert await page.evaluate("document.documentElement.scrollWidth") <= 320


async def test_a_button_can_be_pressed_while_text_streams_in(
    start_relay: StartRelay,
    writer: TokenWriter,
    publisher: Publisher,
    page: Page,
    kafka_settings: KafkaSettings,
) -> None:
    await publisher.started("r1")
    await publisher.asked("r1", "ok")
    await page.goto(f"{start_relay().url}/follow?run=r1")
    approve = page.get_by_role("button", name="Approve: ok")
    await approve.hover(timeout=20_000)
    poet = writer.open("r1", 1, "Poet")
    poet.write("before")
    await expect(page.locator("#text")).to_have_text("Poet: before", timeout=20_000)
    await page.mouse.down()
    poet.write(" and while it is pressed")
    await expect(page.locator("#text")).to_have_text("Poet: before and while it is pressed", timeout=20_000)
    await page.mouse.up()
    assert (await _decision(kafka_settings)).approval_id == "ok"


async def test_a_question_whose_decision_was_refused_can_be_decided_still(
    start_relay: StartRelay, publisher: Publisher, page: Page
) -> None:
    relay = start_relay()
    await publisher.started("r1")
    await publisher.asked("r1", "ok")
    await page.goto(f"{relay.url}/follow?run=r1")
    buttons, status = page.get_by_role("button"), page.locator("#status")
    await expect(buttons).to_have_count(2, timeout=20_000)
    refused = ApprovalRefused(run_id="r1", approval_id="ok", reason="not_authorized")
    await publisher.send("r1/refused/1", refused)
    await expect(status).to_have_text("decision refused: not_authorized", timeout=20_000)
    await expect(buttons).to_have_count(2)
    relay.stop()
    await buttons.first.click()
    await expect(status).to_contain_text("not decided: ", timeout=20_000)
    relay.start()
    await publisher.completed("r1")
    await expect(status).to_have_text("completed", timeout=40_000)
    await expect(buttons).to_have_count(0)


async def test_a_run_that_is_not_there_is_said_to_be_so(start_relay: StartRelay, page: Page) -> None:
    await page.goto(f"{start_relay(unknown_run_grace_s=0.5).url}/follow?run=nobody")
    await expect(page.locator("#status")).to_have_text(
        "no such run, or it is not yours to see", timeout=20_000
    )
