"""Building the history events that the scheduler itself writes."""

from durabletask.internal import orchestrator_service_pb2 as pb

from towline.scheduler.engine.wire import text, timestamp

_STARTED = pb.OrchestratorStartedEvent()
_COMPLETED = pb.OrchestratorCompletedEvent()


def orchestrator_started(now: int) -> bytes:
    """Start of a turn: its time is what the orchestration takes for the current time."""
    return pb.HistoryEvent(
        eventId=-1, timestamp=timestamp(now), orchestratorStarted=_STARTED
    ).SerializeToString()


def orchestrator_completed(now: int) -> bytes:
    """End of a turn."""
    return pb.HistoryEvent(
        eventId=-1, timestamp=timestamp(now), orchestratorCompleted=_COMPLETED
    ).SerializeToString()


def execution_started(now: int, event: pb.ExecutionStartedEvent) -> bytes:
    """First event of a generation."""
    return pb.HistoryEvent(eventId=-1, timestamp=timestamp(now), executionStarted=event).SerializeToString()


def execution_completed(
    now: int, status: int, result: str | None, failure: pb.TaskFailureDetails | None
) -> bytes:
    """Last event of an instance."""
    event = pb.ExecutionCompletedEvent(result=text(result), failureDetails=failure)
    event.orchestrationStatus = status  # pyright: ignore[reportAttributeAccessIssue]  # an int is what protobuf takes
    return pb.HistoryEvent(eventId=-1, timestamp=timestamp(now), executionCompleted=event).SerializeToString()


def execution_terminated(now: int, output: str | None, *, recurse: bool) -> bytes:
    """Somebody ended the instance."""
    event = pb.ExecutionTerminatedEvent(input=text(output), recurse=recurse)
    return pb.HistoryEvent(
        eventId=-1, timestamp=timestamp(now), executionTerminated=event
    ).SerializeToString()


def execution_suspended(now: int, reason: str | None) -> bytes:
    """Events after it are kept back by the worker until a resume."""
    event = pb.ExecutionSuspendedEvent(input=text(reason))
    return pb.HistoryEvent(eventId=-1, timestamp=timestamp(now), executionSuspended=event).SerializeToString()


def execution_resumed(now: int, reason: str | None) -> bytes:
    """Ends a suspension."""
    event = pb.ExecutionResumedEvent(input=text(reason))
    return pb.HistoryEvent(eventId=-1, timestamp=timestamp(now), executionResumed=event).SerializeToString()


def execution_rewound(now: int, reason: str | None, parent_execution_id: str | None) -> bytes:
    """Asks the worker for a history without its failures."""
    event = pb.ExecutionRewoundEvent(reason=text(reason), parentExecutionId=text(parent_execution_id))
    return pb.HistoryEvent(eventId=-1, timestamp=timestamp(now), executionRewound=event).SerializeToString()


def event_raised(now: int, name: str, data: str | None) -> bytes:
    """An external event. The name is stored as given; workers compare it without case."""
    event = pb.EventRaisedEvent(name=name, input=text(data))
    return pb.HistoryEvent(eventId=-1, timestamp=timestamp(now), eventRaised=event).SerializeToString()


def task_completed(now: int, task_id: int, result: str | None) -> bytes:
    """Result of an activity."""
    event = pb.TaskCompletedEvent(taskScheduledId=task_id, result=text(result))
    return pb.HistoryEvent(eventId=-1, timestamp=timestamp(now), taskCompleted=event).SerializeToString()


def task_failed(now: int, task_id: int, failure: pb.TaskFailureDetails) -> bytes:
    """Failure of an activity."""
    event = pb.TaskFailedEvent(taskScheduledId=task_id, failureDetails=failure)
    return pb.HistoryEvent(eventId=-1, timestamp=timestamp(now), taskFailed=event).SerializeToString()


def child_completed(now: int, task_id: int, result: str | None) -> bytes:
    """Result of a sub-orchestration."""
    event = pb.SubOrchestrationInstanceCompletedEvent(taskScheduledId=task_id, result=text(result))
    return pb.HistoryEvent(
        eventId=-1, timestamp=timestamp(now), subOrchestrationInstanceCompleted=event
    ).SerializeToString()


def child_failed(now: int, task_id: int, failure: pb.TaskFailureDetails) -> bytes:
    """Failure of a sub-orchestration, with the child's own details."""
    event = pb.SubOrchestrationInstanceFailedEvent(taskScheduledId=task_id, failureDetails=failure)
    return pb.HistoryEvent(
        eventId=-1, timestamp=timestamp(now), subOrchestrationInstanceFailed=event
    ).SerializeToString()


def timer_fired(now: int, timer_id: int, created: pb.TimerCreatedEvent) -> bytes:
    """``fireAt`` is copied from the creation: workers add chunks of long timers to it."""
    event = pb.TimerFiredEvent(fireAt=created.fireAt, timerId=timer_id)
    return pb.HistoryEvent(eventId=-1, timestamp=timestamp(now), timerFired=event).SerializeToString()


def operation_completed(now: int, request_id: str, output: str | None) -> bytes:
    """Result of an entity call."""
    event = pb.EntityOperationCompletedEvent(requestId=request_id, output=text(output))
    return pb.HistoryEvent(
        eventId=-1, timestamp=timestamp(now), entityOperationCompleted=event
    ).SerializeToString()


def operation_failed(now: int, request_id: str, failure: pb.TaskFailureDetails) -> bytes:
    """Failure of an entity call."""
    event = pb.EntityOperationFailedEvent(requestId=request_id, failureDetails=failure)
    return pb.HistoryEvent(
        eventId=-1, timestamp=timestamp(now), entityOperationFailed=event
    ).SerializeToString()


def lock_granted(now: int, section: str) -> bytes:
    """All entities of a critical section are locked."""
    event = pb.EntityLockGrantedEvent(criticalSectionId=section)
    return pb.HistoryEvent(eventId=-1, timestamp=timestamp(now), entityLockGranted=event).SerializeToString()


def failure(error_type: str, message: str) -> pb.TaskFailureDetails:
    """Details of a failure that the scheduler decided on. Never worth a retry."""
    return pb.TaskFailureDetails(errorType=error_type, errorMessage=message, isNonRetriable=True)


def too_large(what: str, size: int, limit: int) -> pb.TaskFailureDetails:
    """Failure that names the size and the limit."""
    return failure("PayloadTooLarge", f"{what} has {size} bytes, the limit is {limit} bytes")
