"""Programs whose histories are kept: a run that was begun by an earlier version is finished by this one.

Do not change one that has a stored history; add another, and ``python -m tests.unit.worker.programs`` to
store its history.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from agent_framework_durabletask import DurableAIAgentOrchestrationContext
from durabletask import task
from durabletask.task import when_all, when_any
from tests.unit.worker.simulator import Simulator, cancel, decision, event, raised

from towline.worker.errors import RunCancelled


def review(ctx: task.OrchestrationContext, attempts: int) -> Any:
    writer = DurableAIAgentOrchestrationContext(ctx).get_agent("Writer")
    for attempt in range(1, attempts + 1):
        draft = yield writer.run(f"draft {attempt}")
        ctx.set_custom_status({"attempt": attempt, "text": draft.text})
        decided = ctx.wait_for_external_event("HumanApproval")
        timeout = ctx.create_timer(timedelta(hours=1))
        if (yield when_any([decided, timeout])) is timeout:
            raise TimeoutError("nobody decided")
        timeout.cancel()
        if decided.get_result()["approved"]:
            return (yield ctx.call_activity("publish", input=draft.text))
    raise RuntimeError("rejected too often")


def compensate(ctx: task.OrchestrationContext, _: Any) -> Any:
    try:
        yield when_all([ctx.call_sub_orchestrator("child", input=n) for n in range(2)])
    except RunCancelled:
        yield ctx.call_activity("undo")
        raise


def generations(ctx: task.OrchestrationContext, left: int) -> Any:
    word = yield ctx.wait_for_external_event("word")
    ctx.set_custom_status({"left": left, "word": word})
    if left == 0:
        return word
    ctx.continue_as_new(left - 1)


def played_review() -> Simulator:
    run = Simulator.of(review, run_input=3)
    run.start(decision("Nobody", True, "d0"))
    usage = {"input_token_count": 3, "output_token_count": 5, "total_token_count": 8}
    run.turn(run.agent_answers("first draft", usage=usage))
    run.turn(decision("HumanApproval", False, "d1", feedback="shorter", approver="ann"))
    run.turn(run.agent_answers("second draft", usage=usage))
    run.turn(decision("HumanApproval", True, "d2"), decision("HumanApproval~2", True, "d3"))
    run.turn(run.activity_done("published"))
    return run


def played_compensate() -> Simulator:
    run = Simulator.of(compensate)
    run.start()
    run.turn(run.child_done(1))
    run.turn(cancel("changed my mind"))
    run.turn(run.activity_done("undone"))
    return run


def played_generations() -> Simulator:
    run = Simulator.of(generations, run_input=1)
    run.start()
    run.turn(event("word", "one", "e1"), event("word", "two", "e2"), raised("other", 1))
    run.next_generation()
    return run


FOLDER = Path(__file__).parent / "histories"
PROGRAMS: dict[str, tuple[Callable[..., Any], Callable[[], Simulator]]] = {
    "review": (review, played_review),
    "compensate": (compensate, played_compensate),
    "generations": (generations, played_generations),
}


def main() -> None:
    for name, (_, play) in PROGRAMS.items():
        path = FOLDER / f"{name}.json"
        if not path.exists():
            path.write_text(json.dumps({"turns": play().record}, indent=1) + "\n")


if __name__ == "__main__":
    main()
