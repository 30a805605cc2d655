"""Finds what `--app` names and lets it register itself on a worker."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from towline.worker import agent_runs, sdk
from towline.worker.agents import HostAgent
from towline.worker.errors import AppLoadError
from towline.worker.registry import HOST_PREFIX, Catalog, first_line, run_type_info
from towline.worker.worker import TowlineWorker


@dataclass(frozen=True, slots=True)
class LoadedApp:
    """What `--app` names."""

    set_up: Callable[[TowlineWorker], Any]
    name: str
    version: str


def load(target: str) -> LoadedApp:
    """Import `target`, ``package.module:attribute``. The current folder is on the path.

    Raises:
        AppLoadError: There is no such module or attribute, it can't be imported, or it is not callable.
    """
    module_name, separator, attribute = target.partition(":")
    if not separator or not module_name or not attribute:
        raise AppLoadError(
            f"--app {target!r}: expected package.module:attribute, for example my_app:setup_worker"
        )
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise AppLoadError(
                f"--app {target}: there is no module {error.name!r} in {here} or on PYTHONPATH"
            ) from error
        raise AppLoadError(
            f"--app {target}: importing it failed: {error}; install what it needs beside towline"
        ) from error
    except (Exception, SystemExit) as error:  # a script that parses its own arguments, say
        raise AppLoadError(f"--app {target}: importing it failed: {type(error).__name__}: {error}") from error
    found: Any = module
    for part in attribute.split("."):
        found = getattr(found, part, None)
        if found is None:
            raise AppLoadError(f"--app {target}: module {module_name} has no {attribute!r}")
    if not callable(found) or inspect.iscoroutinefunction(found):
        raise AppLoadError(
            f"--app {target}: {attribute} is a {type(found).__name__}; expected a towline.worker.App, "
            "or a plain function that takes the worker and registers agents and orchestrators on it"
        )
    own_name = getattr(found, "name", None)
    if isinstance(own_name, str) and own_name:
        return LoadedApp(found, own_name, str(getattr(module, "__version__", "0")))
    name = module_name if module_name != "__main__" else attribute
    return LoadedApp(found, name, str(getattr(module, "__version__", "0")))


def set_up(
    app: LoadedApp, worker: TowlineWorker, instrument: HostAgent, *, name: str = "", version: str = ""
) -> Catalog:
    """Let `app` register itself on `worker`, and list what it registers.

    Raises:
        AppLoadError: Its own set-up raised, it registered nothing, two run types share a name, or one of them
            can't be offered.
    """
    catalog = Catalog(name or app.name, version or app.version)
    agents: dict[str, str | None] = {}
    found_workflows: list[Any] = []

    def on_agent(agent: Any, registered_name: str, of_workflow: bool, heard: bool) -> Any:
        worker.agent_names[registered_name.casefold()] = registered_name
        if not of_workflow:
            agents[registered_name] = getattr(agent, "description", None)
        return instrument(agent, registered_name, heard=heard)

    with sdk.watch_registrations(worker, on_agent=on_agent, on_workflow=found_workflows.append):
        try:
            app.set_up(worker)
        except (Exception, SystemExit) as error:
            raise AppLoadError(
                f"{app.name}: setting it up failed: {type(error).__name__}: {error}"
            ) from error
    for info in getattr(app.set_up, "run_types", ()):
        catalog.add(info)
    for orchestrator, code in worker.orchestrators.items():
        if not orchestrator.startswith((HOST_PREFIX, sdk.WORKFLOW_PREFIX)):
            catalog.add(run_type_info(orchestrator, description=first_line(code)))
    for workflow in found_workflows:
        _add_workflow(worker, catalog, workflow)
    for agent, description in agents.items():
        info = agent_runs.run_type(agent, description)
        _refuse_second(worker, info.name)
        worker.host_orchestrator(agent_runs.orchestrator(agent), worker.hosting())
        catalog.add(info)
        catalog.agents.append(agent)
    if not catalog.run_types:
        raise AppLoadError(f"{app.name}: it registered no agent, orchestration or workflow")
    return catalog


def _add_workflow(worker: TowlineWorker, catalog: Catalog, workflow: Any) -> None:
    """Make a top-level workflow a run type under its own name, beside the name that upstream gives it."""
    _refuse_second(worker, workflow.name)
    code = worker.orchestrators[f"{sdk.WORKFLOW_PREFIX}{workflow.name}"]
    worker.host_orchestrator(code, worker.workflow_hosting(), name=workflow.name)
    catalog.add(run_type_info(workflow.name, description=getattr(workflow, "description", None)))


def _refuse_second(worker: TowlineWorker, name: str) -> None:
    if name in worker.orchestrators:
        raise AppLoadError(f"two run types are called {name!r}: rename the orchestration or the other one")
