"""Entra ID as a neighbour: while it gives no token, the scheduler is away, and nothing is given up for it."""

from __future__ import annotations

import pytest
from azure.core.exceptions import ClientAuthenticationError, ServiceRequestError
from azure.identity import DefaultAzureCredential

from towline.bridge.errors import SchedulerAwayError
from towline.bridge.scheduler import Scheduler
from towline.contracts.settings import SchedulerSettings


@pytest.mark.parametrize("error", [ClientAuthenticationError, ServiceRequestError])
async def test_a_token_that_can_t_be_had_now_counts_as_a_scheduler_that_is_away(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def get_token(*_scopes: object, **_options: object) -> object:
        raise error("no route to the token endpoint")

    monkeypatch.setattr(DefaultAzureCredential, "get_token", get_token)
    settings = SchedulerSettings(address="http://127.0.0.1:1", credential="azure")
    async with Scheduler(settings, call_timeout_s=5.0) as scheduler:
        for call in (
            scheduler.ping(),
            scheduler.commands_of("r-1"),
            scheduler.wait_for_end("r-1", within_s=1),
        ):
            with pytest.raises(SchedulerAwayError, match="no route to the token endpoint"):
                await call
