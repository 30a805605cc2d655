"""The system's Chromium, driven by Playwright."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator

import pytest
from playwright.async_api import Page, async_playwright
from tests.integration.conftest import (
    kafka,
    kafka_settings,
    parts_folder,
    running_parts,
    scheduler,
    stack,
    valkey,
)
from tests.integration.relay.conftest import http, own_valkey, publisher, start_relay, writer

__all__ = [
    "http",
    "kafka",
    "kafka_settings",
    "own_valkey",
    "parts_folder",
    "publisher",
    "running_parts",
    "scheduler",
    "stack",
    "start_relay",
    "valkey",
    "writer",
]
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture
async def page() -> AsyncIterator[Page]:
    executable = shutil.which("chromium") or shutil.which("google-chrome")
    if executable is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=executable, args=ARGUMENTS)
        try:
            yield await browser.new_page()
        finally:
            await browser.close()
