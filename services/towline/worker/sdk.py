"""Every name of the pinned SDKs that is not public, in one place, checked at start.

`durabletask` and `agent-framework-durabletask` are pinned to exact versions for what this module uses.
A newer version is taken into use by reading its source again, not by trying.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final, cast

import durabletask.internal.orchestrator_service_pb2 as pb
import durabletask.internal.orchestrator_service_pb2_grpc as pb_grpc
import grpc
import grpc.aio
from agent_framework_durabletask import (
    DurableAIAgentWorker,
    _async_bridge,  # pyright: ignore[reportPrivateUsage]
)
from agent_framework_durabletask import _worker as agent_worker  # pyright: ignore[reportPrivateUsage]
from agent_framework_durabletask._async_bridge import run_agent_coroutine
from agent_framework_durabletask._entities import DurableTaskEntityStateProvider
from agent_framework_durabletask._workflows import serialization as workflow_serialization
from azure.core.credentials import AccessToken, TokenCredential
from durabletask import task
from durabletask.azuremanaged.worker import DurableTaskSchedulerWorker
from durabletask.entities import EntityInstanceId
from durabletask.internal import helpers, type_discovery
from durabletask.internal.grpc_interceptor import DefaultClientInterceptorImpl
from durabletask.payload import helpers as payload_helpers
from durabletask.payload.store import PayloadStore
from durabletask.serialization import DataConverter, JsonDataConverter
from durabletask.worker import TaskHubGrpcWorker, WorkItemFilters
from google.protobuf import wrappers_pb2

from towline.telemetry.spans import span_id_of
from towline.worker.errors import UnsupportedSdkError

PINNED: Final = {
    "durabletask": "1.12.0",
    "durabletask-azuremanaged": "1.12.0",
    "agent-framework-durabletask": "1.0.0b260922",
}
_EXPECTED: Final[tuple[tuple[object, str], ...]] = (
    (TaskHubGrpcWorker, "_execute_orchestrator"),
    (TaskHubGrpcWorker, "_execute_activity"),
    (TaskHubGrpcWorker, "_execute_entity_batch"),
    (WorkItemFilters, "_from_registry"),
    (WorkItemFilters, "_to_grpc"),
    (DefaultClientInterceptorImpl, "_intercept_call"),
    (_async_bridge, "_ensure_loop"),
    (agent_worker, "run_agent_coroutine"),
    (TaskHubGrpcWorker, "add_orchestrator"),
    (task.CancellableTask, "set_cancel_handler"),
    (task.CompositeTask, "on_child_completed"),
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

RUN_OPTION: Final = "towline"
"""Option of an agent call under which the host sends along which run and turn it belongs to."""

_FAR_FUTURE: Final = 4_102_444_800
"""2100-01-01, as a token's expiry."""

OrchestratorRequest = pb.OrchestratorRequest
OrchestratorResponse = pb.OrchestratorResponse


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


# Reading what a turn was given and what it answers.


def started_event(request: pb.OrchestratorRequest) -> pb.ExecutionStartedEvent | None:
    """The event that started the instance, if the request carries it."""
    for events in (request.pastEvents, request.newEvents):
        for event in events:
            if event.HasField("executionStarted"):
                return event.executionStarted
    return None


def pin_trace(request: pb.OrchestratorRequest) -> None:
    """Give the orchestration's span an id that follows from the instance, before its first turn runs.

    The SDK draws one at random and has the scheduler keep it with the first turn's report. Were that turn
    lost with its worker, what it has published already would name a span that never comes to be.
    """
    started = started_event(request)
    if started is None or not started.HasField("parentTraceContext"):
        return
    if not request.orchestrationTraceContext.spanID.value:
        execution_id = started.orchestrationInstance.executionId.value
        span_id = span_id_of(request.instanceId, execution_id)
        request.orchestrationTraceContext.spanID.value = f"{span_id:016x}"


def has_parent(started: pb.ExecutionStartedEvent) -> bool:
    """Whether the instance was started by another orchestration."""
    return started.HasField("parentInstance")


def raised_events(request: pb.OrchestratorRequest, name: str) -> Iterator[Any]:
    """Data of the external events called `name` that are new in this turn."""
    for event in request.newEvents:
        if event.HasField("eventRaised") and event.eventRaised.name.casefold() == name.casefold():
            yield json_value(event.eventRaised.input.value)


def json_value(text: str | None) -> Any:
    """`text` as JSON; None for no text."""
    return json.loads(text) if text else None


def completion(response: pb.OrchestratorResponse) -> pb.CompleteOrchestrationAction | None:
    """The action by which a turn ends its instance or starts its next generation."""
    for action in response.actions:
        if action.HasField("completeOrchestration"):
            return action.completeOrchestration
    return None


def resolve_payloads(
    response: pb.OrchestratorResponse, store: PayloadStore | None
) -> pb.OrchestratorResponse:
    """`response` with large payloads fetched back from the store (a copy, if there are any)."""
    if store is None:
        return response
    copy = pb.OrchestratorResponse()
    copy.CopyFrom(response)
    payload_helpers.deexternalize_payloads(copy, store)
    return copy


def keep_events(response: pb.OrchestratorResponse, wanted: Callable[[str], bool]) -> None:
    """Carry over to the next generation only the events whose names are `wanted`."""
    action = completion(response)
    if action is None:
        return
    kept = [event for event in action.carryoverEvents if wanted(event.eventRaised.name)]
    del action.carryoverEvents[:]
    action.carryoverEvents.extend(kept)


def raise_event_request(instance_id: str, name: str, data: Any) -> pb.RaiseEventRequest:
    """A request to raise an external event on another instance."""
    return pb.RaiseEventRequest(
        instanceId=instance_id, name=name, input=wrappers_pb2.StringValue(value=json.dumps(data))
    )


# Reaching into the orchestration context and its tasks.


def payload_store(worker: TaskHubGrpcWorker) -> PayloadStore | None:
    """The worker's store for large payloads."""
    return worker._payload_store  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]


def is_taking_work(worker: TaskHubGrpcWorker) -> bool:
    """Whether the worker's own loop is alive (or was never started)."""
    loop = worker._runLoop  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
    return loop is None or loop.is_alive()


def is_connected(worker: TaskHubGrpcWorker) -> bool:
    """Whether the worker has a work item stream open."""
    stream = worker._response_stream  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
    return stream is not None and bool(stream.is_active())


def fixed_token(token: str) -> TokenCredential:
    """A credential that always shows the same bearer token."""

    class FixedToken:
        def get_token(self, *scopes: str, **options: Any) -> AccessToken:
            del scopes, options
            return AccessToken(token, _FAR_FUTURE)

    return FixedToken()


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


def orchestrator_input_type(fn: Callable[..., Any], converter: DataConverter) -> Any:
    """The type that an orchestrator declares for its input, if the converter can build it."""
    return type_discovery.orchestrator_input_type(fn, converter)


def run_on_agent_loop(work: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine on the loop that agents run on, from another thread, and wait for it.

    Clients that agents and activities share are bound to one loop.
    """
    return run_agent_coroutine(work)


def is_generator(value: object) -> bool:
    """Whether an orchestrator's return value is a generator that is to be driven."""
    return isinstance(value, Generator)


# Seeing what an app registers.


@contextmanager
def watch_registrations(
    worker: TaskHubGrpcWorker,
    *,
    on_agent: Callable[[Any, str, bool], Any],
    on_workflow: Callable[[Any], None],
) -> Generator[None]:
    """While the block runs, see the agents and workflows that are registered on `worker`.

    Upstream-style modules make their own `DurableAIAgentWorker` around the worker they are given; this
    is the only place where an agent can still be wrapped before its entity class closes over it.

    Args:
        worker: Registrations on other workers are left alone.
        on_agent: Gets the agent, the name that it is registered under and whether a workflow registers
            it; returns the agent to host.
        on_workflow: Gets each top-level workflow.
    """
    original_add, original_configure = DurableAIAgentWorker.add_agent, DurableAIAgentWorker.configure_workflow

    def add_agent(self: Any, agent: Any, callback: Any = None, *, entity_id: str | None = None) -> None:
        if self._worker is worker:
            name = entity_id or agent.name
            if name and name not in self._registered_agents:
                agent = on_agent(agent, name, entity_id is not None)
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


# What the workflow engine puts into its inputs, outputs and status.

WORKFLOW_PREFIX: Final = "dafx-"
"""Orchestrations of workflows are registered by upstream as ``dafx-<workflow>``."""


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


# Carrying out work items for another dispatcher than the SDK's own.

Worker = DurableTaskSchedulerWorker


@dataclass(frozen=True, slots=True)
class Answer:
    """What the SDK's executor wants to be told to the scheduler: a method of the service and its message."""

    method: str
    message: Any


class _Answering:
    """Stands in for the scheduler's stub: keeps the one call that an executor makes."""

    def __init__(self) -> None:
        self.answer: Answer | None = None

    def __getattr__(self, method: str) -> Callable[[Any], None]:
        def keep(message: Any) -> None:
            self.answer = Answer(method, message)

        return keep

    def taken(self) -> Answer:
        assert self.answer is not None, "the executor answered nothing"
        return self.answer


def execute_turn(worker: Worker, request: Any, token: str) -> Answer:
    """One orchestration turn, by the SDK's executor."""
    stub = _Answering()
    DurableTaskSchedulerWorker._execute_orchestrator(worker, request, stub, token)  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
    return stub.taken()


def execute_activity(worker: Worker, request: Any, token: str) -> Answer:
    """One activity, by the SDK's executor. Blocks as long as it takes."""
    stub = _Answering()
    worker._execute_activity(request, stub, token)  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
    return stub.taken()


def execute_entity_batch(worker: Worker, request: Any, token: str) -> Answer:
    """One entity batch, by the SDK's executor. Blocks as long as it takes."""
    stub = _Answering()
    worker._execute_entity_batch(request, stub, token)  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
    return stub.taken()


# Answers for items that cannot be carried out.


def failed_turn(request: Any, token: str, error: Exception) -> pb.OrchestratorResponse:
    """The answer that fails the instance."""
    complete = pb.CompleteOrchestrationAction(
        orchestrationStatus=pb.ORCHESTRATION_STATUS_FAILED, failureDetails=_failure(error)
    )
    return pb.OrchestratorResponse(
        instanceId=request.instanceId,
        actions=[pb.OrchestratorAction(id=-1, completeOrchestration=complete)],
        completionToken=token,
        orchestrationTraceContext=request.orchestrationTraceContext,
    )


def failed_activity(request: Any, token: str, error: Exception) -> Answer:
    """The answer that fails the activity."""
    message = pb.ActivityResponse(
        instanceId=request.orchestrationInstance.instanceId,
        taskId=request.taskId,
        failureDetails=_failure(error),
        completionToken=token,
    )
    return Answer("CompleteActivityTask", message)


def failed_batch(request: Any, token: str, error: Exception) -> Answer:
    """The answer that fails each operation of an entity's batch and leaves its state as it is."""
    infos: list[pb.OperationInfo] = []
    if isinstance(request, pb.EntityRequest):
        request, infos = helpers.convert_to_entity_batch_request(request)
    failed = pb.OperationResult(failure=pb.OperationResultFailure(failureDetails=_failure(error)))
    message = pb.EntityBatchResult(
        results=[failed] * len(request.operations), completionToken=token, operationInfos=infos
    )
    if request.HasField("entityState"):
        message.entityState.CopyFrom(request.entityState)
    return Answer("CompleteEntityTask", message)


def _failure(error: Exception) -> pb.TaskFailureDetails:
    return pb.TaskFailureDetails(errorType=type(error).__name__, errorMessage=str(error))


def largest_text_bytes(message: Any) -> int:
    """Size of the largest text in a message that may be put aside, in bytes of UTF-8."""
    if isinstance(message, wrappers_pb2.StringValue):
        return len(message.value.encode())
    largest = 0
    for descriptor, value in message.ListFields():
        if descriptor.message_type is None:
            continue
        parts = value if descriptor.is_repeated else (value,)
        if descriptor.message_type.GetOptions().map_entry:
            parts = [part for part in value.values() if hasattr(part, "ListFields")]
        largest = max([largest, *(largest_text_bytes(part) for part in parts)])
    return largest


def is_agent_entity(worker: Worker, instance_id: str) -> bool:
    """Whether ``@name@key`` is an agent, whose coroutines the SDK would block a thread for."""
    entity = worker._registry.get_entity(EntityInstanceId.parse(instance_id).entity)  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
    return isinstance(entity, type) and issubclass(entity, DurableTaskEntityStateProvider)


def batch_run_ids(request: Any) -> set[str]:
    """The runs on whose behalf an agent's batch works, as far as its operations tell."""
    runs: set[str] = set()
    for operation in getattr(request, "operations", ()):
        try:
            options = json.loads(operation.input.value)["options"][RUN_OPTION]
            runs.add(options["run_id"])
        except (ValueError, TypeError, KeyError):
            continue
    return runs


def prepare(worker: Worker) -> None:
    """What the SDK's own `start` does before it takes work."""
    if worker._auto_generate_work_item_filters:  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
        worker._work_item_filters = WorkItemFilters._from_registry(worker._registry)  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]


def work_items_request(
    worker: Worker, max_entity_batches: int, *, large_payloads: bool
) -> pb.GetWorkItemsRequest:
    """The request that opens the stream of work items, as the SDK makes it; with a limit for entities too."""
    limits = worker.concurrency_options
    capabilities: list[Any] = [
        *([pb.WORKER_CAPABILITY_LARGE_PAYLOADS] if large_payloads else []),
        *sorted(worker._capabilities),  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
    ]
    request = pb.GetWorkItemsRequest(
        maxConcurrentOrchestrationWorkItems=limits.maximum_concurrent_orchestration_work_items,
        maxConcurrentActivityWorkItems=limits.maximum_concurrent_activity_work_items,
        maxConcurrentEntityWorkItems=max_entity_batches,
        capabilities=capabilities,
    )
    filters = worker._work_item_filters  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
    if filters is not None:
        request.workItemFilters.CopyFrom(filters._to_grpc())  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
    return request


def async_channel(worker: Worker, options: Sequence[tuple[str, Any]]) -> grpc.aio.Channel:
    """A channel of the running loop to the worker's scheduler."""
    address = worker._host_address  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
    secure = worker._secure_channel  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
    scheme, separator, rest = address.partition("://")
    if separator:
        secure, address = scheme.lower() in {"https", "grpcs"}, rest
    if secure:
        return grpc.aio.secure_channel(address, grpc.ssl_channel_credentials(), options=options)
    return grpc.aio.insecure_channel(address, options=options)


def stub(channel: grpc.aio.Channel) -> Any:
    """The scheduler's service on `channel`."""
    return pb_grpc.TaskHubSidecarServiceStub(channel)


def hello() -> Any:
    """The message that greets the scheduler."""
    from google.protobuf import empty_pb2

    return empty_pb2.Empty()


@dataclass
class _CallDetails(grpc.ClientCallDetails):
    method: Any = None
    timeout: Any = None
    metadata: Any = None
    credentials: Any = None
    wait_for_ready: Any = None
    compression: Any = None


def call_metadata(worker: Worker) -> tuple[tuple[str, str], ...]:
    """Metadata of each call: task hub, worker, credential. May go to the network for a new token; blocks."""
    details: Any = _CallDetails()
    for interceptor in worker._interceptors or ():  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
        if isinstance(interceptor, DefaultClientInterceptorImpl):
            details = interceptor._intercept_call(details)  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
    return tuple(details.metadata or ())


def agent_loop() -> asyncio.AbstractEventLoop:
    """The one loop on which all agents of this process run: clients and credentials are bound to it."""
    return _async_bridge._ensure_loop()  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]


def install_agent_wait(wait: Callable[[Any, Callable[[Any], Any]], Any]) -> None:
    """Let agent entities wait for their coroutines by `wait`, which falls back to blocking the thread."""

    def run_agent_coroutine(work: Any) -> Any:
        return wait(work, _async_bridge.run_agent_coroutine)

    setattr(agent_worker, "run_agent_coroutine", run_agent_coroutine)  # noqa: B010 — no public name
