"""The README's first app, as printed there, on a real stack."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.integration.conftest import StackFactory
from tests.integration.wire.raw import Wire
from tests.unit.test_docs import first_app


async def test_the_first_app_of_the_readme_runs(
    stack: StackFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_app.py").write_text(first_app())
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    kafka = stack("my_app:setup_worker", roles=("bridge", "worker")).kafka

    async with Wire(kafka.bootstrap, kafka.topic_prefix) as wire:
        run_id = await wire.start("greet", "Ann", run_id="greet-1")
        await wire.asked(run_id, "HumanApproval")
        await wire.decide(run_id, "HumanApproval", True)

        assert (await wire.outcome(run_id)).data["output"] == "Ahoy! (Greet Ann.)"
