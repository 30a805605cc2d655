"""What an app registers: run types for the catalog, orchestrators wrapped for the drive loop."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, cast

from durabletask import task
from durabletask.serialization import DataConverter
from pydantic import ValidationError
from pydantic.errors import PydanticUserError

from towline.contracts.canonical import digest
from towline.contracts.durable import unwrap_input
from towline.contracts.events import AppRegistered, Event, RunTypeInfo
from towline.telemetry.runs import bind
from towline.worker import sdk
from towline.worker.asks import Asks
from towline.worker.context import RunContext, wrap_output
from towline.worker.drive import UserCode, drive
from towline.worker.errors import AppLoadError
from towline.worker.run import Run
from towline.worker.turn import current_turn

HOST_PREFIX: Final = "towline."
"""Names that begin like this are the host's own and no run types."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hosting:
    """How one orchestrator is hosted."""

    converter: DataConverter
    source: str
    agent_names: Mapping[str, str] = field(default_factory=dict[str, str])
    """Agents' names by the lower-case ones that entities have."""
    make_context: Callable[[Run, Asks], RunContext] = RunContext
    take_input: Callable[[Any, Run], Any] | None = None
    """Changes the user's input on its way in."""
    give_output: Callable[[Any, Run], Any] | None = None
    """Changes what the code returns on its way out."""


def hosted(name: str, code: Callable[..., Any], hosting: Hosting) -> Callable[..., Any]:
    """The generator function that the SDK runs in place of `code`, under `name`.

    An instance without an envelope was not started through Towline: it runs as it would on a stock
    worker, and nothing is published for it.
    """
    input_type = sdk.orchestrator_input_type(code, hosting.converter)

    def orchestrator(native: task.OrchestrationContext, value: Any) -> Generator[Any, Any, Any]:
        envelope, user_input = unwrap_input(value)
        user_input = hosting.converter.coerce(user_input, input_type)
        if envelope is None:
            made = code(native, user_input)
            return (yield from cast("UserCode", made)) if sdk.is_generator(made) else made
        run = Run(
            native,
            envelope,
            converter=hosting.converter,
            source=hosting.source,
            agent_names=hosting.agent_names,
        )
        turn = current_turn()
        if turn is not None:
            turn.run = run
        bind(run.ref, calls_out=False)
        run.begin()
        if hosting.take_input is not None:
            user_input = hosting.take_input(user_input, run)
        asks = Asks(run)
        run.asks = asks
        context = hosting.make_context(run, asks)
        made: Any = code(context, user_input)
        if inspect.iscoroutine(made) or inspect.isasyncgen(made):
            if inspect.iscoroutine(made):
                made.close()
            raise TypeError(async_problem(name))
        # Code that never waits may want another generation too.
        output = yield from drive(
            context, cast("UserCode", made) if sdk.is_generator(made) else _returns(made)
        )
        run.drops_events = context.next_generation is not None and not context.next_generation.save_events
        if hosting.give_output is not None:
            output = hosting.give_output(output, run)
        return output if run.is_root else wrap_output(output, run.counters.usage)

    # Not functools.wraps: its __wrapped__ would let the SDK read the declared input type of the user's
    # code and force the envelope into it.
    orchestrator.__name__ = orchestrator.__qualname__ = name
    orchestrator.__doc__ = code.__doc__
    return orchestrator


def async_problem(name: str) -> str:
    """What is wrong with an orchestration that is an async function."""
    return f"{name} is an async function: write `def`, and `yield` the tasks that it waits for"


def _returns(output: Any) -> UserCode:
    return output
    yield


@dataclass(slots=True)
class Catalog:
    """The run types and agents of one app."""

    app: str
    version: str
    run_types: dict[str, RunTypeInfo] = field(default_factory=dict[str, RunTypeInfo])
    agents: list[str] = field(default_factory=list[str])

    def add(self, info: RunTypeInfo) -> None:
        """List a run type; one that is listed already with more detail stays."""
        self.run_types.setdefault(info.name, info)

    def event(self, source: str) -> Event[AppRegistered]:
        """What is published when a worker of the app starts: the same from every replica."""
        data = AppRegistered(
            app=self.app,
            version=self.version,
            run_types=sorted(self.run_types.values(), key=lambda info: info.name),
            agents=sorted(self.agents),
        )
        return Event(
            id=f"{self.app}/registered/{digest(data.model_dump(mode='json'))[:32]}",
            source=source,
            data=data,
            subject=self.app,
        )


def run_type_info(
    name: str, *, schema: Callable[[], dict[str, Any]] | None = None, **fields: Any
) -> RunTypeInfo:
    """A run type's entry in the catalog.

    Args:
        name: Its name.
        schema: Makes the JSON Schema of its input.
        fields: The other fields.

    Raises:
        AppLoadError: The name can be none, or the input has no schema.
    """
    try:
        return RunTypeInfo(name=name, input_schema=None if schema is None else schema(), **fields)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        problem = f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
    except PydanticUserError as error:
        problem = f"its input has no JSON Schema ({error.message}): take another type, or Any"
    raise AppLoadError(f"run type {name!r} can't be offered: {problem}")


def first_line(documented: Any) -> str | None:
    """The first line of a docstring, as a run type's description."""
    lines: Sequence[str] = (getattr(documented, "__doc__", None) or "").strip().splitlines()
    return lines[0].strip() if lines else None
