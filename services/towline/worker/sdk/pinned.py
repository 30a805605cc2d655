"""Which SDK versions this host is built for, and the private names of theirs that it uses."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Final

from agent_framework import ResponseStream
from agent_framework_durabletask import (
    DurableAIAgentWorker,
    _async_bridge,  # pyright: ignore[reportPrivateUsage]
)
from agent_framework_durabletask import (
    _durable_agent_state as agent_state,  # pyright: ignore[reportPrivateUsage]
)
from agent_framework_durabletask import _worker as agent_worker  # pyright: ignore[reportPrivateUsage]
from agent_framework_durabletask._workflows import serialization as workflow_serialization
from durabletask import task
from durabletask import worker as sdk_worker
from durabletask.internal import helpers, tracing, type_discovery
from durabletask.internal.grpc_interceptor import DefaultClientInterceptorImpl
from durabletask.payload import helpers as payload_helpers
from durabletask.serialization import DataConverter
from durabletask.worker import TaskHubGrpcWorker, WorkItemFilters

from towline.worker.errors import UnsupportedSdkError

PINNED: Final = {
    "durabletask": "1.12.0",
    "durabletask-azuremanaged": "1.12.0",
    "agent-framework-durabletask": "1.0.0b260922",
}
_EXPECTED: Final[tuple[tuple[object, str], ...]] = (
    (TaskHubGrpcWorker, "_execute_orchestrator"),
    (sdk_worker, "_OrchestrationExecutor"),
    (sdk_worker, "_EntityExecutor"),
    (sdk_worker, "_RuntimeOrchestrationContext"),
    (tracing, "build_orchestration_trace_context"),
    (tracing, "emit_orchestration_span"),
    (TaskHubGrpcWorker, "_execute_activity"),
    (TaskHubGrpcWorker, "_execute_entity_batch"),
    (WorkItemFilters, "_from_registry"),
    (WorkItemFilters, "_to_grpc"),
    (DefaultClientInterceptorImpl, "_intercept_call"),
    (_async_bridge, "_ensure_loop"),
    (_async_bridge, "_lock"),
    (_async_bridge, "_loop"),
    (_async_bridge, "_thread"),
    (agent_worker, "run_agent_coroutine"),
    (agent_state, "_parse_created_at"),
    (agent_worker, "AgentEntity"),
    (ResponseStream, "with_cleanup_hook"),
    (TaskHubGrpcWorker, "add_orchestrator"),
    (task.CancellableTask, "set_cancel_handler"),
    (task.CompositeTask, "on_child_completed"),
    (task.RetryableTask, "compute_next_delay"),
    (type_discovery, "orchestrator_input_type"),
    (DurableAIAgentWorker, "add_agent"),
    (DurableAIAgentWorker, "configure_workflow"),
    (DurableAIAgentWorker, "_register_single_workflow"),
    (workflow_serialization, "deserialize_value"),
    (workflow_serialization, "resolve_type"),
    (workflow_serialization, "strip_subworkflow_markers"),
    (workflow_serialization, "SUBWORKFLOW_ADDRESS_KEY"),
    (payload_helpers, "deexternalize_payloads"),
    (helpers, "convert_to_entity_batch_request"),
    (DataConverter, "coerce"),
)


def check(*, any_version: bool = False) -> str | None:
    """Make sure that the installed SDKs are those which this host is built for.

    Args:
        any_version: Take other versions too, as long as they have the private names that are used.

    Returns:
        How the installed versions differ; None if they don't.

    Raises:
        UnsupportedSdkError: Naming the package, the version found and the one that is needed.
    """
    differences: list[str] = []
    for package, pinned in PINNED.items():
        try:
            found = version(package)
        except PackageNotFoundError:
            raise UnsupportedSdkError(f"{package} is not installed: install towline[worker]") from None
        if found == pinned:
            continue
        if not any_version:
            raise UnsupportedSdkError(
                f"{package} {found} is installed, but this worker is built for {pinned}: "
                f"install {package}=={pinned}, or a Towline that is built for {found}; "
                "TOWLINE_WORKER_SDK_VERSIONS=any tries with the SDK's own worker"
            )
        differences.append(f"{package} {found} instead of {pinned}")
    for owner, name in _EXPECTED:
        if not hasattr(owner, name):
            raise UnsupportedSdkError(f"{owner!r} has no {name}: the installed SDK was changed")
    return ", ".join(differences) or None
