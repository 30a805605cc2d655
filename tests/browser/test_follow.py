"""The page of docs/guide/streams.md in a real browser: tokens, reconnect, approve."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaConsumer
from playwright.async_api import Page, expect
from tests.integration.relay.conftest import Publisher, StartRelay

from towline.contracts.cloudevents import decode
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
    poet.write("Roses ")
    await expect(text).to_have_text("Poet: Roses", timeout=20_000)
    relay.restart()
    poet.write("are red")
    poet.finish("Roses are red")
    await expect(text).to_have_text("Poet: Roses are red", timeout=40_000)
    critic = writer.open("r1", 2, "Critic")
    critic.write("wrong from the st")
    await expect(text).to_contain_text("Critic: wrong from the st", timeout=20_000)
    writer.open("r1", 2, "Critic").finish("<b>Good</b>")
    await expect(text).to_have_text("Poet: Roses are red\n\nCritic: <b>Good</b>", timeout=20_000)
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
