"""Stored histories against today's code: every turn of them still does and says what it did when recorded.

``python -m tests.unit.worker.programs`` writes those that are missing.
"""

from __future__ import annotations

import json
from typing import Any

import durabletask.internal.orchestrator_service_pb2 as pb
import pytest
from google.protobuf import json_format
from tests.unit.worker.programs import FOLDER, PROGRAMS
from tests.unit.worker.simulator import PaperOutlet, PaperStub, make_worker, told


def recorded(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / f"{name}.json").read_text())


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_stored_history_is_carried_on_as_it_was(name: str) -> None:
    code, _ = PROGRAMS[name]
    stored = recorded(name)
    for number, turn in enumerate(stored["turns"]):
        worker = make_worker()
        worker.add_orchestrator(code)
        stub = PaperStub()
        request = json_format.ParseDict(turn["request"], pb.OrchestratorRequest())
        worker._execute_orchestrator(request, stub, "token")
        assert stub.response is not None
        outlet = worker.outlet
        assert isinstance(outlet, PaperOutlet)
        said = json.loads(json.dumps(told(outlet.sent)))
        assert said == turn["said"], f"turn {number} of {name} says something else"
        kinds = [[action.id, action.WhichOneof("orchestratorActionType")] for action in stub.response.actions]
        assert kinds == turn["actions"], f"turn {number} of {name} does something else"
