"""`towline.worker.App`: orchestrations, activities and agents by decorators, with typed input.

```
app = App("reviews")
app.agent(Agent(client=…, name="Writer"))

@app.activity
def publish(article: Article) -> str: ...

@app.orchestration
def review(run: RunHandle, request: ReviewRequest) -> Steps[Article]:
    answer = yield run.agent("Writer", request.topic, response_format=Article)
    decision = yield run.approval(title="Publish?", details=answer.value, timeout=timedelta(hours=72))
    ...
```
Hosted by ``towline worker --app module:app``. See docs/guide/apps.md.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeAlias, TypeVar, cast, overload

from agent_framework_durabletask import DurableAIAgentWorker
from durabletask import task
from durabletask.worker import TaskHubGrpcWorker
from pydantic import TypeAdapter
from pydantic_core import to_jsonable_python

from towline.contracts.events import RunTypeInfo
from towline.worker import sdk
from towline.worker.context import RunContext
from towline.worker.errors import WorkerError
from towline.worker.handle import ApprovalDecision, RunHandle, several
from towline.worker.registry import async_problem, first_line, run_type_info
from towline.worker.retries import AgentRetry

__all__ = ["AgentRetry", "App", "ApprovalDecision", "RunHandle", "Steps"]

R = TypeVar("R")
P = ParamSpec("P")
Steps: TypeAlias = Generator[task.Task[Any], Any, R]
"""What an orchestration is: a generator of tasks that returns `R`."""

_Code = TypeVar("_Code", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class _Orchestration:
    name: str
    code: Callable[..., Any]
    approvers: tuple[str, ...] | None
    input_type: TypeAdapter[Any] | None


class App:
    """What one worker hosts.

    Args:
        name: Name in the catalog; default: the module's.
    """

    def __init__(self, name: str | None = None) -> None:
        self.name = name
        self._orchestrations: dict[str, _Orchestration] = {}
        self._activities: dict[str, Callable[..., Any]] = {}
        self._agents: list[Any] = []
        self._workflows: list[Any] = []

    @overload
    def orchestration(self, code: _Code, /) -> _Code: ...
    @overload
    def orchestration(
        self, code: None = None, /, *, name: str | None = None, approvers: Sequence[str] | None = None
    ) -> Callable[[_Code], _Code]: ...

    def orchestration(
        self,
        code: Any = None,
        /,
        *,
        name: str | None = None,
        approvers: Sequence[str] | None = None,
    ) -> Any:
        """Make ``code(run, input)`` a run type.

        The annotation of `input` is what the input is validated against, and its JSON Schema goes to the
        catalog: a request that does not fit is rejected before anything runs.

        Args:
            code: A generator function, or a plain one that needs no waiting.
            name: Name of the run type; default: the function's.
            approvers: Who may decide this run type's approvals, where an approval does not say otherwise.

        Raises:
            ValueError: The name is taken.
            TypeError: The function is async, or `approvers` is one text.
        """
        names = None if approvers is None else several("approvers", approvers)

        def add(code: _Code) -> _Code:
            run_type = name or code.__name__
            if inspect.iscoroutinefunction(code) or inspect.isasyncgenfunction(code):
                raise TypeError(async_problem(f"orchestration {run_type}"))
            if run_type in self._orchestrations:
                raise ValueError(
                    f"there is an orchestration {run_type!r} already: give one of them another name"
                )
            self._orchestrations[run_type] = _Orchestration(run_type, code, names, _input_adapter(code, 1))
            cast("Any", code).__towline_run_type__ = run_type
            return code

        return add if code is None else add(code)

    def activity(self, code: _Code) -> _Code:
        """Make ``code(input)`` an activity, for `RunHandle.activity`. Plain or async; called at least once.

        Raises:
            ValueError: The name is taken.
        """
        if code.__name__ in self._activities:
            raise ValueError(f"there is an activity {code.__name__!r} already: rename one of them")
        self._activities[code.__name__] = code
        return code

    def agent(self, agent: Any) -> Any:
        """Host an agent: known to runs by its name, and itself the run type ``agent.<name>``.

        Raises:
            ValueError: It has no name.
        """
        if not getattr(agent, "name", None):
            raise ValueError("an agent needs a name to be hosted: Agent(name=…)")
        self._agents.append(agent)
        return agent

    def workflow(self, workflow: Any) -> Any:
        """Host a workflow: a run type under its own name."""
        self._workflows.append(workflow)
        return workflow

    @property
    def run_types(self) -> list[RunTypeInfo]:
        """Catalog entries of the orchestrations.

        Raises:
            AppLoadError: One of them can't be offered.
        """
        return [
            run_type_info(
                each.name,
                schema=None if each.input_type is None else each.input_type.json_schema,
                description=first_line(each.code),
                approvers=None if each.approvers is None else list(each.approvers),
            )
            for each in self._orchestrations.values()
        ]

    def __call__(self, worker: TaskHubGrpcWorker) -> None:
        """Register all of it on `worker`. Called by the host."""
        agents = DurableAIAgentWorker(worker)
        for agent in self._agents:
            agents.add_agent(agent)
        for workflow in self._workflows:
            agents.configure_workflow(workflow)
        for code in self._activities.values():
            worker.add_activity(_activity(code))
        for orchestration in self._orchestrations.values():
            worker.add_orchestrator(_orchestrator(orchestration))


def _orchestrator(orchestration: _Orchestration) -> Callable[..., Any]:
    def orchestrator(context: Any, value: Any) -> Generator[Any, Any, Any]:
        if not isinstance(context, RunContext):
            raise WorkerError(f"{orchestration.name} is an App's orchestration: start it by a run request")
        if orchestration.input_type is not None:
            value = orchestration.input_type.validate_python(value)
        run = RunHandle(context, approvers=orchestration.approvers)
        output: Any = (
            orchestration.code(run, value)
            if _parameter_count(orchestration.code) > 1
            else (orchestration.code(run))
        )
        if sdk.is_generator(output):
            output = yield from cast("Steps[Any]", output)
        return to_jsonable_python(output)

    orchestrator.__name__ = orchestrator.__qualname__ = orchestration.name
    orchestrator.__doc__ = orchestration.code.__doc__
    return orchestrator


def _activity(code: Callable[..., Any]) -> Callable[..., Any]:
    adapter = _input_adapter(code, 0)
    takes_input = _parameter_count(code) > 0

    def activity(_context: task.ActivityContext, value: Any) -> Any:
        arguments = () if not takes_input else (value if adapter is None else adapter.validate_python(value),)
        result = code(*arguments)
        if inspect.iscoroutine(result):
            result = sdk.run_on_agent_loop(result)
        return to_jsonable_python(result)

    activity.__name__ = activity.__qualname__ = code.__name__
    activity.__doc__ = code.__doc__
    return activity


def _parameter_count(code: Callable[..., Any]) -> int:
    return len(inspect.signature(code).parameters)


def _input_adapter(code: Callable[..., Any], position: int) -> TypeAdapter[Any] | None:
    """Validator of the annotation of the parameter at `position`; None if it has none or is ``Any``."""
    parameters = list(inspect.signature(code).parameters)
    if len(parameters) <= position:
        return None
    annotation = typing.get_type_hints(code).get(parameters[position], Any)
    return None if annotation is Any else TypeAdapter(annotation)
