"""What the client is given and can't be sent is refused in words of whoever gave it."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest

from towline.contracts import (
    AppRegistered,
    ApprovalDecided,
    EncodeError,
    EventData,
    KafkaSettings,
    RunRequested,
    TowlineClient,
)

NO_JSON = "is no JSON: give None, bool, int, float, str, list or dict"
NOW = datetime(2026, 11, 30)


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("model", "fields", "message"),
    [
        (RunRequested, {"input": NOW}, f"input: datetime {NO_JSON}"),
        (RunRequested, {"input": {"order": [1, {"at": NOW}]}}, f"input.order.1.at: datetime {NO_JSON}"),
        (RunRequested, {"input": {"sizes": (1, 2)}}, f"input.sizes: tuple {NO_JSON}"),
        (RunRequested, {"input": {"price": float("nan")}}, "input.price: input should be a finite number"),
        (RunRequested, {"input": {1: 2}}, "input.1: keys must be strings"),
        (AppRegistered, {"app": "a", "version": "1", "run_types": [{}]}, "run_types.0.name: field required"),
        (RunRequested, {"tags": {"team": 1}}, "tags.team: input should be a valid string"),
        (
            ApprovalDecided,
            {"run_id": "r", "approval_id": "a", "approved": True, "data": {"at": [NOW]}},
            f"data.at.0: datetime {NO_JSON}",
        ),
    ],
)
async def test_a_value_that_can_not_be_sent_is_named_where_it_stands(
    model: type[EventData], fields: dict[str, Any], message: str
) -> None:
    client = TowlineClient(KafkaSettings(bootstrap="127.0.0.1:1"))
    given = {"run_type": "a", **fields} if model is RunRequested else fields
    with pytest.raises(EncodeError) as caught:
        await client.publish(model, **given)
    assert str(caught.value) == message


async def test_an_input_that_is_nested_too_deep_is_refused_in_short() -> None:
    client = TowlineClient(KafkaSettings(bootstrap="127.0.0.1:1"))
    with pytest.raises(EncodeError, match=r"^input: is nested too deep: flatten it") as caught:
        await client.publish(RunRequested, run_type="a", input=nested(100_000))
    assert len(str(caught.value)) < 100
