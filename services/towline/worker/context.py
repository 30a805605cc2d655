"""The orchestration context that a run's code gets: the SDK's own, with the run's envelope behind it."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final, cast

from agent_framework_durabletask import AgentSessionId
from durabletask import task
from durabletask.entities import EntityInstanceId, EntityLock

from towline.contracts.durable import ENVELOPE_KEY, wrap_input
from towline.worker import sdk
from towline.worker.asks import Asks
from towline.worker.errors import AgentRunError
from towline.worker.retries import Retries
from towline.worker.run import Run
from towline.worker.turn import current_turn

TOWLINE_OPTION: Final = "towline"
"""Key of an agent call's options under which the run and the turn travel to the agent."""
OUTPUT_KEY: Final = "output"
_AGENT_OPERATION: Final = "run"
_RESERVED_PREFIX: Final = "towline."


class AgentTurnTask(task.CompositeTask[Any], task.CompletableTask[Any]):
    """An agent entity's answer: counts its tokens, and fails if the agent did.

    The entity answers an agent's error as data, with error content and no text; to the code that waits
    it would look like an empty answer.
    """

    def __init__(self, call: task.CompletableTask[Any], run: Run, agent: str) -> None:
        self._run = run
        self._agent = agent
        self.error: AgentRunError | None = None
        super().__init__([call])

    def on_child_completed(self, task: task.Task[Any]) -> None:
        """Take the entity's answer over."""
        if self.is_complete:
            return
        if task.is_failed:
            self.error = AgentRunError(self._agent, "entity_failed", str(task.get_exception()))
            self.fail(str(self.error), self.error)
            return
        answer = task.get_result()
        if isinstance(answer, dict):
            self._run.add_usage(cast("dict[str, Any]", answer).get("usage_details"))
            self.error = agent_error(self._agent, cast("dict[str, Any]", answer))
        if self.error is None:
            self.complete(answer)
        else:
            self.fail(str(self.error), self.error)


class ChildTask(task.CompositeTask[Any], task.CompletableTask[Any]):
    """A child's result: counts the tokens that the child used, which come along with what it returned."""

    def __init__(self, call: task.Task[Any], run: Run, return_type: type | None) -> None:
        self._run = run
        self._return_type = return_type
        super().__init__([call])

    def on_child_completed(self, task: task.Task[Any]) -> None:
        """Take the child's answer over."""
        if self.is_complete:
            return
        if task.is_failed:
            # The SDK's own error, as code that guards children expects it.
            self._exception = task.get_exception()
            self._is_complete = True
            self._notify_parent()
            return
        output, usage = unwrap_output(task.get_result())
        self._run.add_tokens(usage)
        self.complete(self._run.converter.coerce(output, self._return_type))


def wrap_output(output: Any, usage: dict[str, int]) -> Any:
    """A child's output with the tokens that it used; as it is, if it used none."""
    return {ENVELOPE_KEY: {"usage": usage}, OUTPUT_KEY: output} if usage else output


def unwrap_output(value: Any) -> tuple[Any, dict[str, int]]:
    """What the child returned, and its tokens."""
    if not isinstance(value, dict):
        return value, {}
    wrapped = cast("dict[str, Any]", value)
    if ENVELOPE_KEY not in wrapped or OUTPUT_KEY not in wrapped:
        return wrapped, {}
    return wrapped[OUTPUT_KEY], wrapped[ENVELOPE_KEY].get("usage") or {}


def agent_error(agent: str, answer: dict[str, Any]) -> AgentRunError | None:
    """The error in an agent's serialized answer: error content without any text."""
    messages = cast("list[dict[str, Any]]", answer.get("messages") or [])
    contents = [
        content
        for message in messages
        for content in cast("list[dict[str, Any]]", message.get("contents") or [])
    ]
    if any(content.get("type") == "text" and content.get("text") for content in contents):
        return None
    error = next((content for content in contents if content.get("type") == "error"), None)
    if error is None:
        return None
    return AgentRunError(agent, str(error.get("error_code") or "error"), str(error.get("message") or ""))


@dataclass(frozen=True, slots=True)
class NextGeneration:
    """What the run's code asked to continue as new with."""

    new_input: Any
    save_events: bool
    new_version: str | None


class RunContext(task.OrchestrationContext):
    """The SDK's context, seen by the code of one run.

    Everything is the SDK's own, but for: the envelope goes along to children and to the next generation,
    a wait for an external event is an ask, a custom status is announced, and agents are told which turn
    of which run they are called for.
    """

    def __init__(self, run: Run, asks: Asks, *, replays_look_live: bool = False) -> None:
        self.run = run
        self.asks = asks
        self.next_generation: NextGeneration | None = None
        self.children: dict[str, task.Task[Any]] = {}
        self.custom_status: Any = None
        self.retries = Retries()
        self._turn: str | None = None
        self._native = run.native
        self._replays_look_live = replays_look_live

    def __getattr__(self, name: str) -> Any:
        # What a later SDK adds to its context, and the private parts that its own helpers use.
        return getattr(self._native, name)

    @property
    def instance_id(self) -> str:
        """Id of this orchestration instance."""
        return self._native.instance_id

    @property
    def parent_instance_id(self) -> str | None:
        """Id of the parent instance, in a child."""
        return self._native.parent_instance_id

    @property
    def version(self) -> str | None:
        """The instance's version."""
        return self._native.version

    @property
    def current_utc_datetime(self) -> datetime:
        """The orchestration's time, naive UTC."""
        return self._native.current_utc_datetime

    @property
    def is_replaying(self) -> bool:
        """Whether the code runs over history."""
        # The workflow engine sets its status only when not replaying; the host must see it always.
        return False if self._replays_look_live else self._native.is_replaying

    def set_custom_status(self, custom_status: Any) -> None:
        """Set the status and announce it as ``run.progressed``."""
        self.custom_status = custom_status
        self._native.set_custom_status(custom_status)
        self.run.progressed(sdk.json_value(self.run.converter.serialize(custom_status)))

    def create_timer(self, fire_at: datetime | timedelta) -> task.TimerTask:
        """A timer."""
        timer = self._native.create_timer(fire_at)
        self.asks.timer_created(timer, fire_at)
        return timer

    def call_activity(self, activity: Any, **options: Any) -> task.CompletableTask[Any]:
        """Call an activity; its spans and logs name the run."""
        given: dict[str, str] = options.pop("tags", None) or {}
        tags = {**given, **self.run.labels}
        call = self._native.call_activity(activity, tags=tags, **options)
        sdk.watch_retries(call, self._native)
        return call

    def call_entity(
        self,
        entity: EntityInstanceId,
        operation: str,
        input: Any = None,  # noqa: A002 — the SDK's name
        *,
        return_type: type | None = None,
    ) -> task.CompletableTask[Any]:
        """Call an entity; an agent is told the run and the turn."""
        agent = _agent_of(entity, operation, input)
        if agent is None:
            return self._native.call_entity(entity, operation, input, return_type=cast("Any", return_type))
        call = self._native.call_entity(entity, operation, self._agent_input(input))
        return AgentTurnTask(call, self.run, self.run.agent_names.get(agent, agent))

    def signal_entity(
        self,
        entity_id: EntityInstanceId,
        operation_name: str,
        input: Any = None,  # noqa: A002 — the SDK's name
        signal_time: datetime | None = None,
    ) -> None:
        """Signal an entity; an agent is told the run and the turn."""
        if _agent_of(entity_id, operation_name, input) is not None:
            input = self._agent_input(input)  # noqa: A001
        self._native.signal_entity(entity_id, operation_name, input, signal_time)

    def lock_entities(self, entities: list[EntityInstanceId]) -> task.CompletableTask[EntityLock]:
        """Lock entities."""
        return self._native.lock_entities(entities)

    def call_sub_orchestrator(self, orchestrator: Any, **options: Any) -> task.CompletableTask[Any]:
        """Start a child orchestration, which gets the envelope in its input."""
        envelope = self.run.envelope.model_copy(
            update={
                "role": "child",
                "run_type": orchestrator if isinstance(orchestrator, str) else task.get_name(orchestrator),
                "carried": None,
                "traceparent": self.run.traceparent,
            }
        )
        wrapped = wrap_input(envelope, self.child_input(options.pop("input", None)))
        return_type = options.pop("return_type", None)
        generation = self.run.counters.generation
        named = options.get("instance_id") is not None
        if generation > 1 and not named:
            # The SDK counts from 1 in each generation. A child of the same id would ask and speak under the
            # ids of the one before, which are answered and known.
            options["instance_id"] = f"{self.instance_id}:g{generation}-{len(self.children) + 1:04x}"
        call = self._native.call_sub_orchestrator(orchestrator, input=wrapped, **options)
        child_id = sdk.child_instance_id(self._native)
        self.children[child_id] = call
        # A child of the app's own naming keeps its name.
        sdk.watch_retries(call, self._native, None if named else partial(self._further_attempt, child_id))
        return ChildTask(call, self.run, return_type)

    def _further_attempt(self, child_id: str, number: int) -> str:
        """Instance id of a child that is tried again: what it asks is not what the failed attempt asked."""
        before = child_id if number == 2 else f"{child_id}r{number - 1}"
        following = f"{child_id}r{number}"
        self.children[following] = self.children.pop(before)
        return following

    def child_input(self, value: Any) -> Any:
        """What a child gets of `value`: not the marks by which a workflow's engine trusts its own children.

        A run's input may be passed on as it came from a topic, and what is marked so is unpickled.
        """
        return sdk.strip_workflow_markers(value)

    def wait_for_external_event(
        self, name: str, *, data_type: type | None = None
    ) -> task.CancellableTask[Any]:
        """Wait for an external event: announced as an ask."""
        if name.casefold().startswith(_RESERVED_PREFIX):
            return self._native.wait_for_external_event(name, data_type=cast("Any", data_type))
        return self.open_event_ask(name, data_type)

    def open_event_ask(self, name: str, data_type: type | None) -> task.CancellableTask[Any]:
        """The ask behind a wait for an external event; workflows say more about theirs."""
        return self.asks.wait_for_event(name, data_type)

    def send_event(self, instance_id: str, event_name: str, *, data: Any | None = None) -> None:
        """Send an event to another instance."""
        self._native.send_event(instance_id, event_name, data=data)

    def continue_as_new(
        self, new_input: Any, *, save_events: bool = False, new_version: str | None = None
    ) -> None:
        """Start over with a new input once the code returns; the run goes on."""
        if self.next_generation is None:
            self.next_generation = NextGeneration(new_input, save_events, new_version)

    def new_uuid(self) -> str:
        """A UUID that is the same in every replay."""
        return self._native.new_uuid()

    @contextmanager
    def calling_turn(self, turn: str) -> Generator[None]:
        """Agents that are called in the block are called for `turn`: again, if it was tried before."""
        self._turn = turn
        try:
            yield
        finally:
            self._turn = None

    def retry_timer(self, delay: timedelta) -> task.TimerTask:
        """The wait before an agent's turn is tried again."""
        turn = current_turn()
        if turn is not None and not self._native.is_replaying:
            turn.retries += 1
        return self._native.create_timer(delay)

    def _exit_critical_section(self) -> None:
        self._native._exit_critical_section()  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]

    def _agent_input(self, request: dict[str, Any]) -> dict[str, Any]:
        about = {
            "run_id": self.run.envelope.run_id,
            "turn": self._turn or self.run.next_agent_turn(),
            "traceparent": self.run.traceparent,
            "run_type": self.run.envelope.run_type,
        }
        if self.run.envelope.session_id is not None:
            about["session_id"] = self.run.envelope.session_id
        return {**request, "options": {**(request.get("options") or {}), TOWLINE_OPTION: about}}


def _agent_of(entity: EntityInstanceId, operation: str, request: Any) -> str | None:
    """Name of the agent that is called, if it is one."""
    prefix = AgentSessionId.ENTITY_NAME_PREFIX
    if operation != _AGENT_OPERATION or not entity.entity.casefold().startswith(prefix):
        return None
    if not isinstance(request, dict) or "correlationId" not in request:
        return None
    return entity.entity[len(prefix) :]
