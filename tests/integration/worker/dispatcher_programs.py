"""Programs that come out the same whoever carries them out: the SDK's own worker or our dispatcher."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from agent_framework import Agent
from agent_framework_durabletask import DurableAIAgentOrchestrationContext, DurableAIAgentWorker
from durabletask.entities import DurableEntity, EntityInstanceId
from durabletask.task import ActivityContext, OrchestrationContext, TaskFailedError, when_all

from towline.testing.scripted import ScriptedChatClient
from towline.worker.errors import AgentRunError, RunCancelled

SLOW_MODEL_S = 2.0
ENDLESS_MODEL_S = 3600.0


def _breaks(call: Any) -> str:
    raise ConnectionError(f"no model for {call.text}")


def _agents() -> list[Agent[Any]]:
    clients = {
        "Echo": ScriptedChatClient(lambda call: f"echo: {call.text}"),
        "Counter": ScriptedChatClient(lambda call: f"turn {call.turn}"),
        "Broken": ScriptedChatClient(_breaks),
        "Slow": ScriptedChatClient(lambda call: f"slowly: {call.text}", delay_s=SLOW_MODEL_S),
        "Endless": ScriptedChatClient("never said", delay_s=ENDLESS_MODEL_S),
    }
    return [Agent(client=client, name=name, instructions="answer") for name, client in clients.items()]


def _ask(name: str) -> Any:
    def program(ctx: OrchestrationContext, message: str) -> Any:
        agent = DurableAIAgentOrchestrationContext(ctx).get_agent(name)
        return (yield agent.run(message, session=agent.create_session())).text

    program.__name__ = f"ask_{name.lower()}"
    return program


def undoes_by_an_agent(ctx: OrchestrationContext, message: str) -> Any:
    agents = DurableAIAgentOrchestrationContext(ctx)
    try:
        yield agents.get_agent("Endless").run(message, session=agents.get_agent("Endless").create_session())
    except RunCancelled:
        answer = yield agents.get_agent("Slow").run("undo", session=agents.get_agent("Slow").create_session())
        ctx.set_custom_status({"undone": answer.text})
        raise


def survives_an_agent(ctx: OrchestrationContext, message: str) -> Any:
    agent = DurableAIAgentOrchestrationContext(ctx).get_agent("Broken")
    try:
        yield agent.run(message, session=agent.create_session())
    except AgentRunError as error:
        return f"{type(error).__name__}: {'no model for' in str(error)}"
    return "no error"


def turns_of_one_session(ctx: OrchestrationContext, count: int) -> Any:
    agent = DurableAIAgentOrchestrationContext(ctx).get_agent("Counter")
    session = agent.create_session()
    answers = yield when_all([agent.run("next", session=session) for _ in range(count)])
    return [answer.text for answer in answers]


def events(ctx: OrchestrationContext, _: Any) -> Any:
    first = yield ctx.wait_for_external_event("word")
    second = yield ctx.wait_for_external_event("word")
    return [first, second]


def timer(ctx: OrchestrationContext, _: Any) -> Any:
    began = ctx.current_utc_datetime
    yield ctx.create_timer(timedelta(milliseconds=300))
    return ctx.current_utc_datetime - began >= timedelta(milliseconds=300)


def square(_: ActivityContext, number: int) -> int:
    return number * number


def refuse(_: ActivityContext, number: int) -> int:
    raise ValueError(f"not {number}")


def fan_out(ctx: OrchestrationContext, count: int) -> Any:
    squares = yield when_all([ctx.call_activity(square, input=n) for n in range(count)])
    return sum(squares)


def chain(ctx: OrchestrationContext, count: int) -> Any:
    total = 0
    for number in range(count):
        total += yield ctx.call_activity(square, input=number)
    return total


def large(_: ActivityContext, size: int) -> str:
    return "x" * size


def long_history(ctx: OrchestrationContext, count: int) -> Any:
    total = 0
    for _ in range(count):
        total += len((yield ctx.call_activity(large, input=250_000)))
    return total


def failing_activity(ctx: OrchestrationContext, number: int) -> Any:
    try:
        yield ctx.call_activity(refuse, input=number)
    except TaskFailedError as error:
        return f"not {number}" in str(error)
    return "no error"


def parent(ctx: OrchestrationContext, count: int) -> Any:
    return (yield ctx.call_sub_orchestrator(fan_out, input=count))


def generations(ctx: OrchestrationContext, left: int) -> Any:
    yield ctx.call_activity(square, input=left)
    if left:
        ctx.continue_as_new(left - 1)
        return None
    return "last generation"


def raises(ctx: OrchestrationContext, message: str) -> Any:
    yield ctx.call_activity(square, input=1)
    raise LookupError(message)


class Tally(DurableEntity):
    """A number that is not changed by an operation which fails after it has changed it."""

    def add(self, number: int) -> int:
        total = self.get_state(int, 0) + number
        self.set_state(total)
        if number < 0:
            raise ValueError("negative")
        return total

    def total(self) -> int:
        return self.get_state(int, 0)


def tally(ctx: OrchestrationContext, given: dict[str, Any]) -> Any:
    return (yield ctx.call_entity(EntityInstanceId("Tally", given["key"]), *given["call"]))


def setup_worker(worker: Any) -> None:
    agents = DurableAIAgentWorker(worker)
    for agent in _agents():
        agents.add_agent(agent)
    for name in ("Echo", "Slow", "Endless"):
        worker.add_orchestrator(_ask(name))
    for program in (
        survives_an_agent,
        undoes_by_an_agent,
        turns_of_one_session,
        events,
        timer,
        fan_out,
        chain,
        long_history,
        failing_activity,
        parent,
        generations,
        raises,
        tally,
    ):
        worker.add_orchestrator(program)
    worker.add_activity(square)
    worker.add_activity(large)
    worker.add_activity(refuse)
    worker.add_entity(Tally)
