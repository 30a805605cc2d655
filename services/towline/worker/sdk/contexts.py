"""Reaching into the orchestration context, its tasks and the serializer."""

from __future__ import annotations

from collections.abc import Callable, Generator
from datetime import timedelta
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


def watch_retries(
    call: task.Task[Any],
    context: task.OrchestrationContext,
    child_id: Callable[[int], str] | None = None,
) -> None:
    """Let the orchestration's time say whether a call's `retry_timeout` is over, and name a child's attempts.

    The SDK asks the machine's clock, in each replay anew: a call that was tried again in time is not tried
    again by a replay after the timeout, and the run fails as not deterministic.

    Args:
        call: What the context answered; left alone if it is not tried again.
        context: Whose time it is.
        child_id: Instance id of a child's further attempt, by its number from 2; else that of the first.
    """
    if not isinstance(call, task.RetryableTask):
        return
    policy: task.RetryPolicy = call._retry_policy  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
    timeout, began = policy.retry_timeout, context.current_utc_datetime
    by_policy = call.compute_next_delay
    call._retry_policy = task.RetryPolicy(  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
        first_retry_interval=policy.first_retry_interval,
        max_number_of_attempts=policy.max_number_of_attempts,
        backoff_coefficient=policy.backoff_coefficient,
        max_retry_interval=policy.max_retry_interval,
    )

    def compute_next_delay() -> timedelta | None:
        if timeout is not None and context.current_utc_datetime - began >= timeout:
            return None
        delay = by_policy()
        if delay is not None and child_id is not None:
            following = call._attempt_count + 1  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
            action: pb.OrchestratorAction = call._action  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
            action.createSubOrchestration.instanceId = child_id(following)
        return delay

    setattr(call, "compute_next_delay", compute_next_delay)  # noqa: B010 — a method, put in its place


def complete_if_empty(waited_for: task.Task[Any]) -> None:
    """Complete a wait for all of no tasks, which the SDK never does."""
    if not isinstance(waited_for, task.WhenAllTask) or waited_for.is_complete or waited_for.get_tasks():
        return
    empty = cast("task.WhenAllTask[Any]", waited_for)
    empty._result = []  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
    empty._is_complete = True  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
    empty._notify_parent()  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]


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
