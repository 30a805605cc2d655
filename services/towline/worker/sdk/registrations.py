"""Seeing what an app registers, and what the workflow engine puts into inputs, outputs and status."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, Final, cast

from agent_framework_durabletask import DurableAIAgentWorker
from agent_framework_durabletask._workflows import serialization as workflow_serialization
from durabletask.worker import TaskHubGrpcWorker

WORKFLOW_PREFIX: Final = "dafx-"
"""Orchestrations of workflows are registered by upstream as ``dafx-<workflow>``."""


@contextmanager
def watch_registrations(
    worker: TaskHubGrpcWorker,
    *,
    on_agent: Callable[[Any, str, bool, bool], Any],
    on_workflow: Callable[[Any], None],
) -> Generator[None]:
    """While the block runs, see the agents and workflows that are registered on `worker`.

    Upstream-style modules make their own `DurableAIAgentWorker` around the worker they are given; this
    is the only place where an agent can still be wrapped before its entity class closes over it.

    Args:
        worker: Registrations on other workers are left alone.
        on_agent: Gets the agent, the name that it is registered under, whether a workflow registers it and
            whether the app has a callback for what it streams; returns the agent to host.
        on_workflow: Gets each top-level workflow.
    """
    original_add, original_configure = DurableAIAgentWorker.add_agent, DurableAIAgentWorker.configure_workflow

    def add_agent(self: Any, agent: Any, callback: Any = None, *, entity_id: str | None = None) -> None:
        if self._worker is worker:
            name = entity_id or agent.name
            if name and name not in self._registered_agents:
                heard = callback is not None or self._callback is not None
                agent = on_agent(agent, name, entity_id is not None, heard)
        original_add(self, agent, callback, entity_id=entity_id)

    def configure_workflow(self: Any, workflow: Any, callback: Any = None) -> None:
        original_configure(self, workflow, callback)
        if self._worker is worker:
            on_workflow(workflow)

    DurableAIAgentWorker.add_agent = add_agent  # type: ignore[method-assign]
    DurableAIAgentWorker.configure_workflow = configure_workflow  # type: ignore[method-assign]
    try:
        yield
    finally:
        DurableAIAgentWorker.add_agent = original_add  # type: ignore[method-assign]
        DurableAIAgentWorker.configure_workflow = original_configure  # type: ignore[method-assign]


def workflow_value(value: Any) -> Any:
    """A value that the workflow engine has encoded itself, decoded. Never for data from outside."""
    return workflow_serialization.deserialize_value(value)


def workflow_type(key: Any) -> Any:
    """The type that the engine names by ``module:class``; None if it can't be found."""
    return workflow_serialization.resolve_type(key) if isinstance(key, str) else None


def strip_workflow_markers(value: Any) -> Any:
    """Input from outside without the keys by which the engine marks its own children's input."""
    return workflow_serialization.strip_subworkflow_markers(value)


def workflow_path_prefix(value: Any) -> str | None:
    """Where in the tree of workflows a child stands, ``review_sub~0``, from the input its parent made."""
    if not isinstance(value, dict):
        return None
    address = cast("dict[str, Any]", value).get(workflow_serialization.SUBWORKFLOW_ADDRESS_KEY)
    if not isinstance(address, dict):
        return None
    prefix = cast("dict[str, Any]", address).get("request_path_prefix")
    return prefix.rstrip("~") or None if isinstance(prefix, str) else None
