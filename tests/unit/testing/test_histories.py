"""Recorded runs against changed code: what would break a run under way is found, nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import pytest

from towline.testing.errors import ReplayError, TestKitError
from towline.testing.histories import RecordedRun, replay

Replay = Callable[..., None]
DOWNSTREAM = Path(__file__).resolve().parents[3] / "examples" / "downstream"
HISTORIES = sorted((DOWNSTREAM / "tests" / "histories").glob("*.json"))


@pytest.fixture
def replay_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Replay:
    """Replays one of the downstream project's histories against its code with one change made to it."""
    monkeypatch.syspath_prepend(tmp_path)

    def run(history: str, before: str = "", after: str = "", *, outputs: bool = False) -> None:
        source = (DOWNSTREAM / "newsroom.py").read_text()
        assert before in source, "the example has changed: change this test with it"
        module = f"newsroom_{uuid4().hex}"
        (tmp_path / f"{module}.py").write_text(source.replace(before, after) if before else source)
        recorded = RecordedRun.load(DOWNSTREAM / "tests" / "histories" / f"{history}.json")
        replay(f"{module}:setup_worker", recorded, outputs=outputs)

    return run


@pytest.mark.parametrize("history", [path.stem for path in HISTORIES])
def test_unchanged_code_replays(replay_changed: Replay, history: str) -> None:
    replay_changed(history, outputs=True)


DRAFT = 'yield DurableAIAgentOrchestrationContext(context).get_agent("Reporter").run(topic)'
PRINT = "return (yield context.call_activity(print_headline, input=draft.text))"


@pytest.mark.parametrize(
    ("history", "before", "after", "said"),
    [
        (
            "waiting",
            'context.set_custom_status({"draft": draft.text})',
            "yield context.call_activity(print_headline, input=draft.text)",
            "",
        ),
        ("waiting", "deadline = context.create_timer(TIME_TO_DECIDE)", "deadline = decision", ""),
        (
            "approved",
            PRINT,
            'return "Printed."',
            "",
        ),
        (
            "waiting",
            "deadline = context.create_timer(TIME_TO_DECIDE)",
            "deadline = context.create_timer(TIME_TO_DECIDE); context.call_activity(print_headline)",
            "what the run did not: activity print_headline",
        ),
        ("timed_out", "raise TimeoutError(f", "return (f", "the run ends failed with TimeoutError"),
        ("timed_out", "raise TimeoutError(f", "raise ValueError(f", "the code ends failed with ValueError"),
        ("waiting", DRAFT, f"{DRAFT}; return draft.text", "the run goes on, the code ends"),
        (
            "approved",
            "worker.add_orchestrator(headline)",
            "pass",
            "the run ends completed, the code ends failed",
        ),
    ],
)
def test_other_steps_are_found(
    replay_changed: Replay, history: str, before: str, after: str, said: str
) -> None:
    with pytest.raises(ReplayError, match="headline does not replay") as caught:
        replay_changed(history, before, after)

    assert said in str(caught.value)


def test_another_output_breaks_no_run_and_is_found_where_asked_for(
    replay_changed: Replay,
) -> None:
    replay_changed("rejected", "Spiked: ", "Dropped: ")

    with pytest.raises(ReplayError, match=r"Spiked: SNOW!.*Dropped: SNOW!"):
        replay_changed("rejected", "Spiked: ", "Dropped: ", outputs=True)


def test_a_saved_run_is_loaded_as_it_was(tmp_path: Path) -> None:
    recorded = RecordedRun.load(HISTORIES[0])
    recorded.save(tmp_path / "again.json")

    assert RecordedRun.load(tmp_path / "again.json") == recorded


def test_the_folder_of_the_first_recorded_run_is_made(tmp_path: Path) -> None:
    RecordedRun.load(HISTORIES[0]).save(tmp_path / "tests" / "histories" / "run-17.json")

    assert (tmp_path / "tests" / "histories" / "run-17.json").exists()


@pytest.mark.parametrize("text", ["", "{}", '{"run_id": "r", "instances": [{}]}', "[]"])
def test_a_file_that_is_no_recorded_run_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "broken.json"
    path.write_text(text)

    with pytest.raises(TestKitError, match=r"broken\.json is no recorded run"):
        RecordedRun.load(path)
