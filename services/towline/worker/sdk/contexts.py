"""Reaching into the orchestration context, its tasks and the serializer."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, cast

import durabletask.internal.orchestrator_service_pb2 as pb
from durabletask import task
from durabletask.internal import type_discovery
from durabletask.serialization import DataConverter, JsonDataConverter
from durabletask.worker import TaskHubGrpcWorker


def data_converter(worker: TaskHubGrpcWorker) -> DataConverter:
    """The worker's serializer."""
    return worker._data_converter  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]


def default_converter() -> DataConverter:
    """The SDK's serializer."""
    return JsonDataConverter()


def trace_parent(context: task.OrchestrationContext) -> str | None:
    """The trace context under which the orchestration's own work is recorded."""
    trace = getattr(context, "_orchestration_trace_context", None) or getattr(
        context, "_parent_trace_context", None
    )
    return cast("str", trace.traceParent) or None if trace is not None else None


def child_instance_id(context: task.OrchestrationContext) -> str:
    """Id of the child orchestration that was created last in this context."""
    actions = cast("dict[int, pb.OrchestratorAction]", context._pending_actions)  # type: ignore[attr-defined]  # noqa: SLF001
    return actions[max(actions)].createSubOrchestration.instanceId


def cancel_handler(wait: task.CancellableTask[Any]) -> Callable[[], None] | None:
    """What detaches a wait from the events that it waits for."""
    return wait._cancel_handler  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]


def release_wait(wait: task.CancellableTask[Any]) -> None:
    """Drop the cancel handler of a wait that is complete: it is never called, and refers back to the wait."""
    wait._cancel_handler = None  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]


def orchestrator_input_type(fn: Callable[..., Any], converter: DataConverter) -> Any:
    """The type that an orchestrator declares for its input, if the converter can build it."""
    return type_discovery.orchestrator_input_type(fn, converter)


def is_generator(value: object) -> bool:
    """Whether an orchestrator's return value is a generator that is to be driven."""
    return isinstance(value, Generator)
