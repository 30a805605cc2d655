"""Times in the state of agents: read quickly, and just as the SDK reads them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from agent_framework_durabletask import DurableAgentState
from hypothesis import given
from hypothesis import strategies as st

from towline.worker import sdk
from towline.worker.sdk import times


@given(
    st.datetimes(min_value=datetime(1000, 1, 1)),
    st.none() | st.integers(-14 * 60, 14 * 60),
    st.sampled_from(("auto", "seconds")),
)
def test_what_the_sdk_writes_is_read_as_the_sdk_reads_it(
    moment: datetime, minutes: int | None, timespec: str
) -> None:
    zone = None if minutes is None else timezone(timedelta(minutes=minutes))
    text = moment.replace(tzinfo=zone).isoformat(timespec=timespec)
    assert times.read_time(text) == times.by_sdk(text)


@pytest.mark.parametrize(
    "text",
    [
        "2026-11-25T10:00:00Z",
        "2026-11-25T10:00:00.1234567Z",
        "2026-11-25T10:00:00.1",
        "2026-11-25 10:00",
        "20261125",
        "25 Nov 2026",
    ],
)
def test_other_forms_are_read_as_the_sdk_reads_them(text: str) -> None:
    assert times.read_time(text) == times.by_sdk(text)


@pytest.mark.parametrize("nonsense", ["2026-02-30T10:00:00", "2026-W48-3", "soon", "", None, 7])
def test_nonsense_is_the_present_time_as_the_sdk_has_it(nonsense: object) -> None:
    before = datetime.now(UTC)
    assert before <= times.read_time(nonsense) <= datetime.now(UTC)


def test_the_sdk_reads_a_conversation_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(value: object) -> datetime:
        raise AssertionError(f"read by the SDK: {value}")

    monkeypatch.setattr(times, "by_sdk", slow)
    sdk.install_fast_times()
    entry: dict[str, object] = {
        "$type": "response",
        "correlationId": "1",
        "createdAt": "2026-11-25T10:00:00Z",
    }
    state = DurableAgentState.from_dict({"schemaVersion": "1.1.0", "data": {"conversationHistory": [entry]}})
    (read,) = state.data.conversation_history
    assert read.created_at == datetime(2026, 11, 25, 10, tzinfo=UTC)
